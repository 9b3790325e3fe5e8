"""Stand-ins and contract suites for testing against EventSeal."""

from eventseal.testing.fake_kms import FakeBatchKms, FakeKms, FakeKmsCall
from eventseal.testing.manual_clock import ManualClock

__all__ = ["FakeBatchKms", "FakeKms", "FakeKmsCall", "ManualClock"]
