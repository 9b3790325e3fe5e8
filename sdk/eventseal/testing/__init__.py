"""Stand-ins and contract suites for tests of code that uses EventSeal."""

from eventseal.testing.fake_kms import FakeBatchKms, FakeKms, FakeKmsCall, ManualClock

__all__ = ["FakeBatchKms", "FakeKms", "FakeKmsCall", "ManualClock"]
