"""The erasure ledger: its entries, their storage, and the recording of erasures."""
