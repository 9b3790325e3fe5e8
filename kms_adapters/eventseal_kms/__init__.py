"""KMS adapters for EventSeal, found by the entry points of the group ``eventseal.kms``."""
