"""A stand-in for AWS KMS. Import it from :mod:`eventseal_kms.testing`."""
