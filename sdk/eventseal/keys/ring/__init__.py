"""The keys that a process has in memory, and what it does with them: open, seal, rotate, destroy."""
