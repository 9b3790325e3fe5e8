"""The key tables, and the key store on them."""
