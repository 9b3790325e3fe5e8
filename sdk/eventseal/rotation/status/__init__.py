"""The state of keys and items in numbers, and what is worth running next."""
