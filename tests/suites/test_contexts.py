"""The rules of pooled contexts, each broken on purpose too: a probe passes on the pool, not on the mutant."""

from __future__ import annotations

import os
import threading
from collections import deque

import pytest

from eventseal.errors import EventSealError, KeyNotFoundError
from eventseal.suites import A256CBC_HS512
from eventseal.suites import cbc_hmac as contexts_module
from eventseal.suites.cbc_hmac import ContextPool, seal_many

KEY = bytes(range(64))
AAD = b"where it stands"


class Spy:
    """Stands in for a cipher context; it counts, can fail, and can give another length than asked for."""

    def __init__(self, *, fails=False, gives=0):
        self.fails, self.gives, self.sizes = fails, gives, []

    def update(self, blocks):
        self.sizes.append(len(blocks))
        if self.fails:
            raise MemoryError
        return bytes(len(blocks) + self.gives)


def idle_of(pool, direction):
    return getattr(pool, f"_{direction}ors")


def use(pool, direction, blocks=bytes(32)):
    return getattr(pool, direction)(blocks)


# --- the probes: each holds one rule against any class of pool -------------------------------------


def probe_alignment(pool_class, one_shot_of):
    pool = pool_class(A256CBC_HS512, KEY)
    for size in (0, 1, 15, 17, 31):
        for direction in ("encrypt", "decrypt"):
            with pytest.raises(EventSealError):
                use(pool, direction, bytes(size))
    reference = one_shot_of(A256CBC_HS512, KEY)
    for number in range(3):
        plaintext = b"item %d" % number
        (sealed,) = seal_many(pool, [(plaintext, AAD)])
        assert reference.open(sealed, AAD) == plaintext


def probe_dropped_after_exception(pool_class, direction):
    pool = pool_class(A256CBC_HS512, KEY)
    idle_of(pool, direction).append(Spy(fails=True))
    with pytest.raises(MemoryError):
        use(pool, direction)
    assert not idle_of(pool, direction)


def probe_output_length_checked(pool_class, direction):
    for gives in (-16, -1, 1, 16):
        pool = pool_class(A256CBC_HS512, KEY)
        idle_of(pool, direction).append(Spy(gives=gives))
        with pytest.raises(EventSealError):
            use(pool, direction)
        assert not idle_of(pool, direction)


def probe_used_alone(pool_class, direction):
    pool = pool_class(A256CBC_HS512, KEY)
    meeting = threading.Barrier(2, timeout=60)
    used = []

    class Slow(Spy):
        def update(self, blocks):
            used.append(self)
            meeting.wait()  # both threads are inside update now
            return super().update(blocks)

    idle_of(pool, direction).extend([Slow(), Slow()])
    threads = [threading.Thread(target=use, args=(pool, direction)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(used) == len(set(used)) == 2


def probe_closed_gives_nothing(pool_class, direction):
    pool = pool_class(A256CBC_HS512, KEY)
    use(pool, direction)
    assert idle_of(pool, direction)
    pool.close()
    assert pool.closed
    assert not idle_of(pool, direction)
    for ask in (lambda: use(pool, direction), pool.keyed_mac):
        with pytest.raises(KeyNotFoundError):
            ask()


def probe_late_return_is_dropped(pool_class, direction):
    pool = pool_class(A256CBC_HS512, KEY)

    class ClosesMeanwhile(Spy):
        def update(self, blocks):
            pool.close()
            return super().update(blocks)

    idle_of(pool, direction).append(ClosesMeanwhile())
    use(pool, direction)
    assert not idle_of(pool, direction)


def probe_at_most_one_per_core_is_kept(pool_class, direction):
    pool = pool_class(A256CBC_HS512, KEY)
    count = (os.cpu_count() or 1) + 2
    meeting = threading.Barrier(count, timeout=60)

    class Slow(Spy):
        def update(self, blocks):
            meeting.wait()
            return super().update(blocks)

    spies = deque(Slow() for _ in range(count))
    pool._cipher = type("Maker", (), {f"{direction}or": lambda self: spies.popleft()})()
    threads = [threading.Thread(target=use, args=(pool, direction)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(idle_of(pool, direction)) <= (os.cpu_count() or 1)


def probe_reused(pool_class, direction):
    pool = pool_class(A256CBC_HS512, KEY)
    spy = Spy()
    idle_of(pool, direction).append(spy)
    for _ in range(3):
        use(pool, direction)
    assert spy.sizes == [32, 32, 32]
    assert list(idle_of(pool, direction)) == [spy]


PROBES = [
    probe_dropped_after_exception,
    probe_output_length_checked,
    probe_used_alone,
    probe_closed_gives_nothing,
    probe_late_return_is_dropped,
    probe_at_most_one_per_core_is_kept,
    probe_reused,
]


@pytest.mark.parametrize("direction", ["encrypt", "decrypt"])
@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_the_pool_keeps_every_rule(probe, direction):
    probe(ContextPool, direction)


def test_misaligned_input_is_refused_before_it_reaches_a_context(one_shot_of):
    probe_alignment(ContextPool, one_shot_of)


# --- the mutants: each breaks one rule, and its probe must notice ----------------------------------


class Unaligned(ContextPool):
    def _used(self, context, blocks, idle):
        output = context.update(blocks)
        idle.append(context)
        return output


class KeptAfterException(ContextPool):
    def _used(self, context, blocks, idle):
        try:
            return super()._used(context, blocks, deque())
        finally:
            idle.append(context)


class LengthUnchecked(ContextPool):
    def _used(self, context, blocks, idle):
        idle.append(context)
        return context.update(blocks)


class Shared(ContextPool):
    """Looks at the idle context instead of taking it."""

    def encrypt(self, blocks):
        return self._used(self._encryptors[-1], blocks, deque())

    def decrypt(self, blocks):
        return self._used(self._decryptors[-1], blocks, deque())


class GivesWhenClosed(ContextPool):
    def close(self):
        self._mac = None


class KeepsLateReturns(ContextPool):
    def _used(self, context, blocks, idle):
        output = super()._used(context, blocks, idle)
        idle.append(context)
        return output


class KeepsAll(ContextPool):
    def __init__(self, suite, suite_key):
        super().__init__(suite, suite_key)
        self._encryptors, self._decryptors = deque(), deque()


class MakesAlways(ContextPool):
    def _used(self, context, blocks, idle):
        return super()._used(context, blocks, deque())


MUTANTS = [
    (KeptAfterException, probe_dropped_after_exception),
    (LengthUnchecked, probe_output_length_checked),
    (Shared, probe_used_alone),
    (GivesWhenClosed, probe_closed_gives_nothing),
    (KeepsLateReturns, probe_late_return_is_dropped),
    (KeepsAll, probe_at_most_one_per_core_is_kept),
    (MakesAlways, probe_reused),
]


@pytest.mark.parametrize("direction", ["encrypt", "decrypt"])
@pytest.mark.parametrize(("mutant", "probe"), MUTANTS, ids=lambda given: given.__name__)
def test_a_pool_that_breaks_a_rule_is_caught(mutant, probe, direction):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        probe(mutant, direction)


def test_a_pool_that_takes_misaligned_input_is_caught(one_shot_of):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        probe_alignment(Unaligned, one_shot_of)


def test_one_misaligned_call_would_corrupt_the_next_items(one_shot_of):
    """Why the rule is there."""
    pool = Unaligned(A256CBC_HS512, KEY)
    pool.encrypt(bytes(40))
    output = pool.encrypt(os.urandom(16) + b"sixteen of plain")
    reference = one_shot_of(A256CBC_HS512, KEY)
    assert reference.encrypt_blocks(b"sixteen of plain", output[:16]) != output[16:]


# --- the rest --------------------------------------------------------------------------------------


def test_a_key_of_another_size_is_refused(suite):
    for size in (0, suite.key_size - 1, suite.key_size + 1):
        with pytest.raises(EventSealError, match=str(suite.key_size)):
            ContextPool(suite, bytes(size))


def test_no_call_gives_a_context_more_than_the_limit(monkeypatch):
    monkeypatch.setattr(contexts_module, "MAX_UPDATE", 64)
    pool = ContextPool(A256CBC_HS512, KEY)
    spy = Spy()
    pool._encryptors.append(spy)
    assert len(pool.encrypt(bytes(160))) == 160
    assert spy.sizes == [64, 64, 32]


def test_long_input_in_several_calls_is_one_chain(monkeypatch, one_shot_of):
    blocks = os.urandom(176)
    reference = one_shot_of(A256CBC_HS512, KEY).encrypt_blocks(blocks, bytes(16))
    monkeypatch.setattr(contexts_module, "MAX_UPDATE", 64)
    pool = ContextPool(A256CBC_HS512, KEY)
    assert pool.encrypt(blocks) == reference
    assert pool.decrypt(reference) == blocks


def test_closing_again_changes_nothing():
    pool = ContextPool(A256CBC_HS512, KEY)
    pool.close()
    pool.close()
    assert pool.closed


def test_a_pool_does_not_show_its_key():
    assert KEY.hex() not in repr(ContextPool(A256CBC_HS512, KEY))
    assert not hasattr(ContextPool(A256CBC_HS512, KEY), "__dict__")
