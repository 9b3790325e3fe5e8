"""The erasure ledger: its entries, where its lines are kept, and how an erasure is recorded."""
