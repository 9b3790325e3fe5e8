"""A process of the re-encryption's benchmarks: ``append URL KEY_FILE COUNT``, or ``rotate URL KEY_FILE``."""

from __future__ import annotations

import json
import select
import sys
import time
import warnings
from uuid import UUID, uuid4

from eventseal.cipher import ItemContext
from eventseal.configuration import EventSeal
from eventseal.items import SequencedItem
from eventseal.rotation import JobResult, reencrypt, rotate_keys
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy

DATA = b'{"activity":"A_SUBMITTED","amount":15000,"lifecycle":"COMPLETE","resource":"112"}' * 2
PER_STREAM = 20


def append(seal: EventSeal, count: int) -> None:
    """Append items one by one, and print the seconds of each."""
    strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
    seconds = []
    for number in range(count):
        if not number % PER_STREAM:
            stream = uuid4()
        place = ItemContext(stream, number % PER_STREAM, "loans:LoanApplication.Moved")
        started = time.perf_counter()
        while True:
            sealed = seal.cipher.encrypt(DATA, place)
            key = seal.keyring.sealing_keys({"application": 0})["application"]
            if sealed[3:19] == key.key_id.bytes:
                break
        strategy.append(SequencedItem(place.sequence_id, place.position, place.topic, sealed, key.key_id))
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))


def rotate(seal: EventSeal) -> None:
    """Rotate and re-encrypt again and again, until a line comes in; print how many items were moved."""
    done: dict[UUID | None, int] = {}  # by job: each tells its own

    def stop_if_asked(result: JobResult | None) -> None:
        if result is not None:
            done[result.job_id] = result.done
        if select.select([sys.stdin], [], [], 0)[0]:
            raise KeyboardInterrupt

    print("ready", flush=True)
    try:
        while True:
            stop_if_asked(None)
            rotate_keys(seal)
            stop_if_asked(reencrypt(seal, progress=stop_if_asked))
    except KeyboardInterrupt:
        print(sum(done.values()))


def main() -> None:
    warnings.simplefilter("ignore")
    what, url, key_file = sys.argv[1:4]
    seal = EventSeal.from_settings(store_url=url, kms_key=f"local://{key_file}", application="bench")
    if what == "append":
        append(seal, int(sys.argv[4]))
    else:
        rotate(seal)
    seal.close()


if __name__ == "__main__":
    main()
