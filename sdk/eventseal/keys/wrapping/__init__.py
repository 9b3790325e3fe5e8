"""Wrapping of keys under KEKs and under branch keys."""
