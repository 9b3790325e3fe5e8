"""The maintenance verbs over a store of sealed items, and the one type of their results."""

from eventseal.rotation.copying import copy_items
from eventseal.rotation.damaged_rows import DamagedRows, damaged_row, damaged_rows
from eventseal.rotation.data_keys import mark_compromised, rotate_keys
from eventseal.rotation.jobs import list_jobs, pause_job
from eventseal.rotation.keks import KekReport, kek_report, refuse_needed_kek
from eventseal.rotation.migrate import begin_migration, finish_migration, migrate
from eventseal.rotation.reencrypt import reencrypt
from eventseal.rotation.results import Failure, JobResult
from eventseal.rotation.retire import retire
from eventseal.rotation.rewrap import rewrap
from eventseal.rotation.sealed_store import SealedStore
from eventseal.rotation.standing import Advice, Status
from eventseal.rotation.status import status
from eventseal.rotation.verify import VerifyResult, verify

__all__ = [
    "Advice",
    "DamagedRows",
    "Failure",
    "JobResult",
    "KekReport",
    "SealedStore",
    "Status",
    "VerifyResult",
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
