"""The status of keys and items, and the commands to run next."""
