"""Crypto-shredding: a scope's keys are destroyed, so that its items never open; and the ledger of it."""

from eventseal.erasure.epoch import roll_epoch
from eventseal.erasure.epoch_result import EndedKek, Ending, EpochResult
from eventseal.erasure.ledger import DatabaseLedger, FileLedger, Ledger, LedgerLines
from eventseal.erasure.ledger_entries import LedgerEntry
from eventseal.erasure.receipts import Receipt
from eventseal.erasure.recording import adopt
from eventseal.erasure.reopen import reopen
from eventseal.erasure.restore import RestoredScope, RestoreResult, after_restore
from eventseal.erasure.shred import HasLedger, ShredResult, shred
from eventseal.erasure.subject_erased import SubjectErased, erased_subjects

__all__ = [
    "DatabaseLedger",
    "EndedKek",
    "Ending",
    "EpochResult",
    "FileLedger",
    "HasLedger",
    "Ledger",
    "LedgerEntry",
    "LedgerLines",
    "Receipt",
    "RestoreResult",
    "RestoredScope",
    "ShredResult",
    "SubjectErased",
    "adopt",
    "after_restore",
    "erased_subjects",
    "reopen",
    "roll_epoch",
    "shred",
]
