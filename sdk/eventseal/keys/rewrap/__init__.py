"""Rewrapping: moves each key's wrappings to the KEK, version and branch key that it should have."""
