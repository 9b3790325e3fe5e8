"""Authentication of key rows: under the store key, against the revocation tree, and never back in time."""
