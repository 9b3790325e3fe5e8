"""The tables of re-encryption jobs and of compromised keys."""
