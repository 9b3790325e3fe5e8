"""Crypto-shredding: destroying a scope's keys, so that its items can never be opened."""
