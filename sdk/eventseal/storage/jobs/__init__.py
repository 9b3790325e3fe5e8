"""The tables of re-encryption jobs, and of what is known of compromised keys."""
