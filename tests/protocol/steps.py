"""
The steps of the protocol, by the dotted names of the functions that take them; a test holds the two equal.

Some functions take several steps with stalls between them: then a step is named after the inner function.
"""

from __future__ import annotations

# Keys in memory
CONFIRM_SEALING = "eventseal.keys.ring.opening.Refresher.confirm_for_sealing"
CONFIRM_OPENING = "eventseal.keys.ring.opening.Refresher.confirm_for_opening"
ASK = "eventseal.keys.ring.held_keys.HeldKeys.asked"
READ_CHANGES = "eventseal.storage.key_store.SQLAlchemyKeyStore.changes"
LEARN = "eventseal.keys.ring.held_keys.HeldKeys.learn"
READ_ACTIVE = "eventseal.storage.key_store.SQLAlchemyKeyStore.active"
READ_KEY = "eventseal.storage.key_store.SQLAlchemyKeyStore.get"
KEEP = "eventseal.keys.ring.held_keys.HeldKeys.keep"
SEAT = "eventseal.keys.ring.held_keys.HeldKeys.seat"
BURY = "eventseal.keys.ring.held_keys.HeldKeys.bury"
UNSEAT = "eventseal.keys.ring.held_keys.HeldKeys.unseat"
# Making and replacing keys
ADD_ACTIVE = "eventseal.storage.key_store.SQLAlchemyKeyStore.add_active"
REPLACE_ACTIVE = "eventseal.storage.key_store.SQLAlchemyKeyStore.replace_all_active"
ROTATE_DUE = "eventseal.keys.ring.sealing.Sealer._rotate_due"
ROTATE = "eventseal.keys.ring.rotating.Rotator.rotate"
REPLACED = "eventseal.keys.ring.rotating.Rotator.replace"
COMPROMISE = "eventseal.keys.ring.destroying.Destroyer.mark_compromised"
# Items
SEAL = "eventseal.cipher.aes.AESCipher.encrypt_many"
OPEN_ITEM = "eventseal.cipher.aes.AESCipher.open_many"
OPEN_FENCE = "eventseal.storage.items.fences.open_fences"
INSERT = "eventseal.storage.items.inserts.ItemInserts.execute"
REFUSE = "eventseal.storage.items.appends.ItemAppends._refuse_closed"
COMMIT = "eventseal.storage.items.appends.ItemAppends._commit"
ROLL_BACK = "eventseal.storage.items.appends.ItemAppends.append"
READ_ITEMS = "eventseal.storage.strategy.SQLAlchemyActiveRecordStrategy.get_items"
# Ends of keys
CLOSE_FENCE = "eventseal.storage.items.fences.close_fence"
COUNT = "eventseal.storage.items.key_counts.count_under"
COMMIT_CLOSING = "eventseal.rotation.fences.close_and_count"
RETIRE = "eventseal.keys.ring.destroying.Destroyer.retire"
SET_STATES = "eventseal.storage.key_store.SQLAlchemyKeyStore.set_states"
SHRED = "eventseal.erasure.shredding.shred"
SHRED_KEYS = "eventseal.keys.ring.destroying.Destroyer.shred"
REOPEN = "eventseal.erasure.reopening.reopen"
FREE_SLOT = "eventseal.keys.ring.destroying.Destroyer.reopen"
RECORD_MARKS = "eventseal.rotation.fences.record_compromised"
# The ledger
INTEND = "eventseal.erasure.ledger.recording.Recording.intend"
OPEN_INTENTS = "eventseal.erasure.ledger.ledger.Ledger.open_intents"
FINISH = "eventseal.erasure.ledger.recording.Recording.finish"
TELL_REOPENING = "eventseal.erasure.reopening._record_reopening"
READ_LEDGER = "eventseal.erasure.restore.Reading.of"
LOOK_FOR_UNDONE = "eventseal.erasure.restore.undone_scopes"
SHRED_KEYS_AGAIN = "eventseal.keys.ring.destroying.Destroyer.shred_again"
SHRED_AGAIN = "eventseal.erasure.restore._Run.take"
CHECK_RESTORE = "eventseal.erasure.restore.after_restore"
# Re-encryption
READ_PAGE = "eventseal.rotation.jobs.resealers.TableResealer.page"
RESEAL = "eventseal.cipher.aes.AESCipher.reseal_many"
SKIP = "eventseal.rotation.jobs.resealers.TableResealer._skip"
SHARE_FENCE = "eventseal.storage.items.fences.share_fences"
SWAP = "eventseal.storage.items.swaps_on_sqlite.SQLiteSwaps.swap"
CHECK_KEYS = "eventseal.rotation.jobs.resealers.TableResealer._check_keys"
COMMIT_BATCH = "eventseal.rotation.jobs.resealers.TableResealer._write"
# Wrappings
GENERATE = "eventseal.keys.ring.parts.RingParts.new_keys"
HOLD_BRANCHES = "eventseal.storage.keys.kek_fences.hold_branches"
REWRAP = "eventseal.rotation.rewrapping.rewrap"
REWRAP_PAGE = "eventseal.storage.key_store.SQLAlchemyKeyStore.page"
MOVE = "eventseal.keys.rewrap.under_keks.KekRewrapper.rewrap"
PUT_WRAPPINGS = "eventseal.storage.key_store.SQLAlchemyKeyStore.put_wrappings"
DROP_WRAPPINGS = "eventseal.storage.key_store.SQLAlchemyKeyStore.drop_wrappings"
MARK_VERIFIED = "eventseal.storage.key_store.SQLAlchemyKeyStore.mark_wrappings_verified"
UNWRAP = "eventseal.keys.wrapping.keks.Verifier.note"
ROTATE_BRANCHES = "eventseal.keys.keyring.Keyring.rotate_branches"
REFUSE_NEEDED_KEK = "eventseal.rotation.rewrapping.refuse_needed_kek"
# The roll of the epoch
BEGIN_EPOCH = "eventseal.storage.keys.epochs.begin_epoch"
RENEW_BRANCHES = "eventseal.keys.rewrap.key_wrappings.KeyWrappings.renew_branches"
OF_SCOPE = "eventseal.storage.key_store.SQLAlchemyKeyStore.of_scope"
MAKE_VERSIONS = "eventseal.erasure.epoch_keks.EpochKeks.make_versions"
NOTE_VERSION = "eventseal.storage.keys.epochs.note_version"
CLOSE_KEKS = "eventseal.storage.keys.kek_fences.close_keks"
REFUSE_CLOSED = "eventseal.storage.keys.kek_fences.refuse_closed"
REWRAP_LEDGER = "eventseal.erasure.ledger.ledger.Ledger.rewrap"
END_VERSIONS = "eventseal.erasure.epoch_keks.EpochKeks.end_old"
FINISH_EPOCH = "eventseal.storage.keys.epochs.finish_epoch"
# Key tables that somebody edits
LEARN_TREE = "eventseal.keys.authentication.revocations.Revocations.learn"
SETTLE_CLOSED = "eventseal.keys.ring.sealing.Seats._settle_closed"
INSERT_KEY = "eventseal.storage.keys.rows.insert_records"
IS_ADMITTED = "eventseal.storage.keys.state_changes.is_admitted"
LIST_ERASED = "eventseal.erasure.reopening.list_erased"
READ_ERASED = "eventseal.cipher.aes.AESCipher._erased"

# What no function does
CRASH = "the process is killed"
TIME = "the refresh interval passes"
BEGIN = "the caller's transaction takes its snapshot"
LOCK_TIMEOUT = "lock_timeout"
DELETE_KEK = "the KEK is deleted"
BACK_UP = "a backup is taken"
RESTORE = "the backup is restored"
FORGE = "somebody who has no KMS adds an entry to the ledger"
PUT_BACK = "the ledger is put back from its copy"
COPY_TABLES = "the attacker keeps a copy of the key tables"
PUT_ROW_BACK = "the old row of a key is put back, with its wrapping"
FREE_TOMBSTONE = "the slot of a tombstone is freed"
GIVE_SLOT = "the slot is given to a tombstone"
PUT_LEAF_BACK = "an old leaf of the tree is put back"
DELETE_LEAF = "a leaf of the tree is deleted"
PUT_OLD_MARK_BACK = "the mark of the format before the tree is put back"
PUT_TABLES_BACK = "all key tables are put back"
EDIT_REGISTRY = "a table's row in the registry is edited"
SET_COLUMN = "an item's column is set to another key"
SET_CREATED_AT = "the date of a branch key is edited"
WRITE_JUNK = "an item is overwritten with bytes that name a destroyed key"
REPAIR = "the remedies of the errors are followed"
EDITS = frozenset(
    {
        PUT_ROW_BACK,
        FREE_TOMBSTONE,
        GIVE_SLOT,
        PUT_LEAF_BACK,
        DELETE_LEAF,
        PUT_OLD_MARK_BACK,
        PUT_TABLES_BACK,
        EDIT_REGISTRY,
        SET_COLUMN,
        SET_CREATED_AT,
        WRITE_JUNK,
    }
)
ENVIRONMENT = EDITS | {
    CRASH,
    TIME,
    BEGIN,
    LOCK_TIMEOUT,
    DELETE_KEK,
    BACK_UP,
    RESTORE,
    FORGE,
    PUT_BACK,
    COPY_TABLES,
    REPAIR,
}
