"""The maintenance verbs over a store of sealed items, and the one type of their results."""

from eventseal.rotation.results import Failure, JobResult

__all__ = ["Failure", "JobResult"]
