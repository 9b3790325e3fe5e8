"""KMS adapters for EventSeal, found by the entry points ``eventseal.kms``."""
