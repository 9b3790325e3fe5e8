"""The maintenance verbs over a store of sealed items, and the one type of their results."""

from eventseal.rotation.results import Failure, JobResult
from eventseal.rotation.sealed_store import SealedStore
from eventseal.rotation.verify import verify

__all__ = ["Failure", "JobResult", "SealedStore", "verify"]
