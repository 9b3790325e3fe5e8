"""Databases: engines, transactions, faults, column types and table set-up."""
