"""Where keys and items stand, and what is worth running next."""
