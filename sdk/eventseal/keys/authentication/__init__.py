"""Which key rows to believe: their MACs under the store key, and what the revocation tree says of them."""
