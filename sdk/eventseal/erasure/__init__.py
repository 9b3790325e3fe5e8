"""
Erase scopes, roll epochs, reconcile restores, and repair or set aside rows.

The erasure ledger records each of these operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.lazy_names import lazy_names

_HOMES = {
    "Backup": "backup",
    "CheckedReceipt": "receipt_checks",
    "DatabaseLedger": "ledger.ledger",
    "EndedKek": "epoch_receipt",
    "Ending": "epoch_receipt",
    "EpochReceipt": "epoch_receipt",
    "EpochResult": "epoch_receipt",
    "FileLedger": "ledger.ledger",
    "Ledger": "ledger.ledger",
    "LedgerEntry": "ledger.entries",
    "Receipt": "receipts",
    "RecordedEntry": "epoch_receipt",
    "RepairResult": "repairing",
    "RestoreResult": "restore",
    "RestoredScope": "restore",
    "ShredResult": "shredding",
    "SubjectErased": "shredding",
    "VerifyReceipt": "receipts",
    "adopt": "ledger.recording",
    "after_restore": "restore",
    "check_receipt": "receipt_checks",
    "erased_subjects": "shredding",
    "reopen": "reopening",
    "repair": "repairing",
    "roll_epoch": "epoch",
    "rows_in_force": "setting_aside",
    "set_aside": "setting_aside",
    "shred": "shredding",
    "withdraw": "setting_aside",
}

if TYPE_CHECKING:
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
    from eventseal.erasure.setting_aside import rows_in_force, set_aside, withdraw
    from eventseal.erasure.shredding import ShredResult, SubjectErased, erased_subjects, shred
else:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)

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
    "rows_in_force",
    "set_aside",
    "shred",
    "withdraw",
]
