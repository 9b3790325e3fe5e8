"""Rewrapping: wraps each key under the KEKs, versions and branch key that it should have."""
