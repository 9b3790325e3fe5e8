"""The maintenance verbs for a store of sealed items, and their results."""

from eventseal.rotation.copying import copy_items
from eventseal.rotation.jobs.jobs import list_jobs, pause_job
from eventseal.rotation.key_rotation import mark_compromised, rotate_keys
from eventseal.rotation.migration import abandon_migration, begin_migration, finish_migration, migrate
from eventseal.rotation.reencryption import reencrypt
from eventseal.rotation.results import Failure, JobResult
from eventseal.rotation.retirement import retire
from eventseal.rotation.rewrapping import KekReport, kek_report, refuse_needed_kek, rewrap
from eventseal.rotation.row_damage import DamagedRows, damaged_row, damaged_rows
from eventseal.rotation.sealed_store import SealedStore
from eventseal.rotation.status.advice import Advice, Status
from eventseal.rotation.status.application_status import status
from eventseal.rotation.verification import VerifyResult, verify

__all__ = [
    "Advice",
    "DamagedRows",
    "Failure",
    "JobResult",
    "KekReport",
    "SealedStore",
    "Status",
    "VerifyResult",
    "abandon_migration",
    "begin_migration",
    "copy_items",
    "damaged_row",
    "damaged_rows",
    "finish_migration",
    "kek_report",
    "list_jobs",
    "mark_compromised",
    "migrate",
    "pause_job",
    "reencrypt",
    "refuse_needed_kek",
    "retire",
    "rewrap",
    "rotate_keys",
    "status",
    "verify",
]
