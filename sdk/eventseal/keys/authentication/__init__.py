"""Authentication of the key tables: MACs of rows, and the revocation tree."""
