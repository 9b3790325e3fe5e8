"""Rewrapping: wraps each key under its current KEKs, versions and branch key."""
