"""Keeps keys out of botocore's own log, which at DEBUG shows whole requests and answers, keys included."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGERS_WITH_BODIES = ("botocore.endpoint", "botocore.parsers")

_calling: ContextVar[bool] = ContextVar("eventseal_kms_call", default=False)


def _redact(record: logging.LogRecord) -> bool:
    if _calling.get():
        record.msg, record.args = "(hidden by EventSeal: this line may hold a key)", ()
    return True


@cache
def _install() -> None:
    for name in _LOGGERS_WITH_BODIES:
        logging.getLogger(name).addFilter(_redact)


@contextmanager
def bodies_hidden() -> Iterator[None]:
    """Hide what botocore logs of requests and answers made inside, in this thread only."""
    _install()
    token = _calling.set(True)
    try:
        yield
    finally:
        _calling.reset(token)
