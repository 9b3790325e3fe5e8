"""Stand-ins and contract suites for testing against EventSeal."""

from eventseal.testing.fake_kms import FakeBatchKms, FakeKms, FakeKmsCall, ManualClock

__all__ = ["FakeBatchKms", "FakeKms", "FakeKmsCall", "ManualClock"]
