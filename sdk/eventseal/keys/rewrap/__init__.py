"""Rewrapping: every key under the KEK, version or branch where it should be."""
