"""Crypto-shredding: destroying a scope's keys, so that its items can never be opened."""

from eventseal.erasure.shred import reopen, shred

__all__ = ["reopen", "shred"]
