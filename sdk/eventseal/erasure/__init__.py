"""
Erase scopes, roll epochs, reconcile restores, and repair or set aside rows.

The erasure ledger records each of these operations.
"""

from eventseal.erasure.backup import Backup
from eventseal.erasure.epoch import roll_epoch
from eventseal.erasure.epoch_receipt import EndedKek, Ending, EpochReceipt, EpochResult, RecordedEntry
from eventseal.erasure.ledger.entries import LedgerEntry
from eventseal.erasure.ledger.ledger import DatabaseLedger, FileLedger, Ledger
from eventseal.erasure.ledger.recording import adopt
from eventseal.erasure.receipt_checks import CheckedReceipt, check_receipt
from eventseal.erasure.receipts import Receipt, VerifyReceipt
from eventseal.erasure.reopening import reopen
from eventseal.erasure.repairing import RepairResult, repair
from eventseal.erasure.restore import RestoredScope, RestoreResult, after_restore
from eventseal.erasure.setting_aside import set_aside, withdraw
from eventseal.erasure.shredding import ShredResult, SubjectErased, erased_subjects, shred

__all__ = [
    "Backup",
    "CheckedReceipt",
    "DatabaseLedger",
    "EndedKek",
    "Ending",
    "EpochReceipt",
    "EpochResult",
    "FileLedger",
    "Ledger",
    "LedgerEntry",
    "Receipt",
    "RecordedEntry",
    "RepairResult",
    "RestoreResult",
    "RestoredScope",
    "ShredResult",
    "SubjectErased",
    "VerifyReceipt",
    "adopt",
    "after_restore",
    "check_receipt",
    "erased_subjects",
    "reopen",
    "repair",
    "roll_epoch",
    "set_aside",
    "shred",
    "withdraw",
]
