"""The keys in a process's memory: opening, sealing, rotating and destroying."""
