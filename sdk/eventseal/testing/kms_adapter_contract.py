"""
What every KMS adapter must pass: subclass it, override its fixtures, and run pytest.

::

    class TestMyAdapter(KmsAdapterContract, KmsBatchContract):
        @pytest.fixture
        def make_adapter(self, my_kms):
            return lambda: MyAdapter("my-kms://key-1", my_kms)

        @pytest.fixture
        def other_adapter(self, my_kms):
            return MyAdapter("my-kms://key-2", my_kms)

        @pytest.fixture
        def count_calls(self, my_kms):
            return lambda: len(my_kms.log)
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pytest

from eventseal.errors import ConfigurationError, IntegrityError, NotMyKeyError
from eventseal.kms import (
    EncryptionContext,
    KmsAdapter,
    SupportsBatch,
    SupportsGeneration,
    SupportsRewrap,
    WrappedKey,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

KEY_SIZE = 32
THREADS = 16
FOREIGN_URIS = ("", "nonsense", "elsewhere://key", f"branch:{uuid4()}")


class KmsAdapterFixtures:
    """The fixtures of the suites; those that raise are the subclass's own."""

    @pytest.fixture
    def make_adapter(self) -> Callable[[], KmsAdapter]:
        """Make an adapter, each time a new one, always of the same KEK. Override it."""
        raise NotImplementedError("override the fixture `make_adapter`")

    @pytest.fixture
    def other_adapter(self) -> KmsAdapter:
        """An adapter of another KEK of the same service. Override it."""
        raise NotImplementedError("override the fixture `other_adapter`")

    @pytest.fixture
    def count_calls(self) -> Callable[[], int]:
        """Tell how many calls have reached the KMS. Override it; a KMS that is never called gives 0."""
        raise NotImplementedError("override the fixture `count_calls`")

    @pytest.fixture
    def secrets(self) -> Collection[str]:
        """Texts that no representation may show: a token, for instance. Override it if there are any."""
        return ()

    @pytest.fixture
    def adapter(self, make_adapter: Callable[[], KmsAdapter]) -> KmsAdapter:
        """The adapter under test."""
        return make_adapter()

    @pytest.fixture
    def context(self) -> EncryptionContext:
        """A data key's context."""
        return _context()


class KmsAdapterContract(KmsAdapterFixtures):
    """What every adapter must do."""

    def test_it_satisfies_the_protocol(self, adapter: KmsAdapter) -> None:
        assert isinstance(adapter, KmsAdapter)
        assert "://" in adapter.uri

    def test_a_uri_that_is_none_is_refused_when_the_adapter_is_made(self, adapter: KmsAdapter) -> None:
        scheme = adapter.uri.partition("://")[0]
        with pytest.raises(ConfigurationError):
            type(adapter).from_uri(f"{scheme}://")  # type: ignore[attr-defined]

    def test_making_an_adapter_makes_no_call(
        self, make_adapter: Callable[[], KmsAdapter], count_calls: Callable[[], int]
    ) -> None:
        before = count_calls()
        adapter = make_adapter()
        assert adapter.uri
        assert repr(adapter)
        assert count_calls() == before

    def test_a_generated_key_unwraps_to_itself(self, adapter: KmsAdapter, context: EncryptionContext) -> None:
        key, wrapped = adapter.generate_data_key(context)
        assert len(key) == KEY_SIZE
        assert adapter.unwrap(wrapped, context) == key

    def test_no_two_generated_keys_are_equal(self, adapter: KmsAdapter, context: EncryptionContext) -> None:
        made = [adapter.generate_data_key(context) for _ in range(5)]
        assert len({key for key, _ in made}) == len({wrapped.ciphertext for _, wrapped in made}) == len(made)

    def test_a_given_key_unwraps_to_itself(self, adapter: KmsAdapter, context: EncryptionContext) -> None:
        key = bytes(range(KEY_SIZE))
        wrapped = adapter.wrap(key, context)
        assert key not in wrapped.ciphertext
        assert adapter.unwrap(wrapped, context) == key

    def test_two_wrappings_of_one_key_differ(self, adapter: KmsAdapter, context: EncryptionContext) -> None:
        key = bytes(range(KEY_SIZE))
        assert adapter.wrap(key, context).ciphertext != adapter.wrap(key, context).ciphertext

    def test_the_stored_uri_is_resolved_and_stays(
        self, make_adapter: Callable[[], KmsAdapter], context: EncryptionContext
    ) -> None:
        """What is stored names the KEK itself, so that any other process finds it again."""
        key, wrapped = make_adapter().generate_data_key(context)
        again = make_adapter().wrap(key, context)
        assert wrapped.kek_uri == again.kek_uri
        assert "alias/" not in wrapped.kek_uri
        assert wrapped.kek_version is None or wrapped.kek_version
        assert make_adapter().unwrap(wrapped, context) == key

    @pytest.mark.parametrize(
        "edit",
        [{"key_id": uuid4()}, {"purpose": "branch"}, {"application": "other"}],
        ids=lambda edit: next(iter(edit)),
    )
    def test_each_part_of_the_context_is_bound(
        self, adapter: KmsAdapter, context: EncryptionContext, edit: dict[str, Any]
    ) -> None:
        key, wrapped = adapter.generate_data_key(context)
        other = replace(context, **edit)
        for wrapping in (wrapped, adapter.wrap(key, context)):
            with pytest.raises(IntegrityError):
                adapter.unwrap(wrapping, other)

    def test_parts_of_the_context_do_not_run_together(self, adapter: KmsAdapter) -> None:
        key_id = uuid4()
        _, wrapped = adapter.generate_data_key(EncryptionContext(key_id, "data", "shop"))
        for purpose, application in (("datas", "hop"), ("dat", "ashop"), ("shop", "data")):
            with pytest.raises(IntegrityError):
                adapter.unwrap(wrapped, EncryptionContext(key_id, purpose, application))

    def test_an_edited_wrapping_gives_no_other_key(
        self, adapter: KmsAdapter, context: EncryptionContext
    ) -> None:
        """A text encoding may read one edit as the same bytes; what comes out is then the same key."""
        key, wrapped = adapter.generate_data_key(context)
        refused = 0
        positions = {*range(0, len(wrapped.ciphertext), 7), len(wrapped.ciphertext) - 1}
        for position in positions:
            edited = bytearray(wrapped.ciphertext)
            edited[position] ^= 1
            try:
                assert adapter.unwrap(replace(wrapped, ciphertext=bytes(edited)), context) == key
            except IntegrityError:
                refused += 1
        assert refused >= len(positions) - 1

    def test_a_cut_or_lengthened_wrapping_is_refused(
        self, adapter: KmsAdapter, context: EncryptionContext
    ) -> None:
        _, wrapped = adapter.generate_data_key(context)
        whole = wrapped.ciphertext
        for ciphertext in (b"", whole[:1], whole[: len(whole) // 2], whole[:-4], whole + whole[-4:]):
            with pytest.raises(IntegrityError):
                adapter.unwrap(replace(wrapped, ciphertext=ciphertext), context)

    def test_a_wrapping_put_beside_another_key_is_refused(
        self, adapter: KmsAdapter, context: EncryptionContext
    ) -> None:
        other = replace(context, key_id=uuid4())
        _, first = adapter.generate_data_key(context)
        _, second = adapter.generate_data_key(other)
        for wrapped, its_row in ((first, other), (second, context)):
            with pytest.raises(IntegrityError):
                adapter.unwrap(wrapped, its_row)

    def test_a_wrapping_of_another_kek_is_not_mine_and_makes_no_call(
        self,
        adapter: KmsAdapter,
        other_adapter: KmsAdapter,
        context: EncryptionContext,
        count_calls: Callable[[], int],
    ) -> None:
        adapter.generate_data_key(context)
        _, wrapped = other_adapter.generate_data_key(context)
        before = count_calls()
        for kek_uri in (wrapped.kek_uri, *FOREIGN_URIS):
            with pytest.raises(NotMyKeyError) as raised:
                adapter.unwrap(replace(wrapped, kek_uri=kek_uri), context)
            assert raised.value.kek_uri == kek_uri
        assert count_calls() == before

    def test_another_keks_wrapping_under_our_name_is_refused(
        self, adapter: KmsAdapter, other_adapter: KmsAdapter, context: EncryptionContext
    ) -> None:
        _, mine = adapter.generate_data_key(context)
        _, foreign = other_adapter.generate_data_key(context)
        with pytest.raises(IntegrityError):
            adapter.unwrap(replace(foreign, kek_uri=mine.kek_uri), context)

    def test_no_representation_shows_a_secret(
        self, adapter: KmsAdapter, context: EncryptionContext, secrets: Collection[str]
    ) -> None:
        key, wrapped = adapter.generate_data_key(context)
        shown = f"{adapter!r} {adapter} {wrapped!r} {wrapped}"
        for secret in (*secrets, key.hex(), repr(key)[2:-1], repr(wrapped.ciphertext)[2:-1]):
            assert secret not in shown

    def test_threads_share_an_adapter(self, adapter: KmsAdapter) -> None:
        def round_trip(_: int) -> bool:
            context = _context()
            key, wrapped = adapter.generate_data_key(context)
            return adapter.unwrap(wrapped, context) == key

        with ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(round_trip, range(THREADS * 4)))


class KmsBatchContract(KmsAdapterFixtures):
    """What an adapter with ``wrap_many`` and ``unwrap_many`` must do beside."""

    @pytest.fixture
    def batches(self, adapter: KmsAdapter) -> SupportsBatch:
        """The adapter under test, as one that takes batches."""
        assert isinstance(adapter, SupportsBatch)
        return adapter

    def test_a_batch_wraps_and_unwraps_in_order(self, batches: SupportsBatch) -> None:
        keys = [(bytes([number]) * KEY_SIZE, _context()) for number in range(40)]
        wrapped = batches.wrap_many(keys)
        pairs = [(cast("WrappedKey", one), context) for one, (_, context) in zip(wrapped, keys, strict=True)]
        assert batches.unwrap_many(pairs) == [key for key, _ in keys]

    def test_an_empty_batch_is_empty(self, batches: SupportsBatch, count_calls: Callable[[], int]) -> None:
        before = count_calls()
        assert batches.wrap_many([]) == batches.unwrap_many([]) == []
        assert count_calls() == before

    def test_each_item_of_a_batch_has_its_own_outcome(
        self, adapter: KmsAdapter, batches: SupportsBatch, other_adapter: KmsAdapter
    ) -> None:
        contexts = [_context() for _ in range(5)]
        keys, wrapped = zip(*map(adapter.generate_data_key, contexts), strict=True)
        items = list(zip(wrapped, contexts, strict=True))
        items[1] = (items[1][0], contexts[2])
        items[3] = (other_adapter.generate_data_key(contexts[3])[1], contexts[3])
        outcomes = batches.unwrap_many(items)
        assert isinstance(outcomes[1], IntegrityError)
        assert isinstance(outcomes[3], NotMyKeyError)
        assert [outcomes[at] for at in (0, 2, 4)] == [keys[at] for at in (0, 2, 4)]


class KmsGenerationContract(KmsAdapterFixtures):
    """What an adapter with ``generate_data_keys`` must do beside."""

    def test_keys_made_together_are_unwrapped_under_their_contexts(self, adapter: KmsAdapter) -> None:
        assert isinstance(adapter, SupportsGeneration)
        contexts = [_context() for _ in range(40)]
        made = [outcome for outcome in adapter.generate_data_keys(contexts) if isinstance(outcome, tuple)]
        assert len(made) == len(contexts)
        assert len({key for key, _ in made}) == len(contexts)
        for (key, wrapped), context in zip(made, contexts, strict=True):
            assert len(key) == KEY_SIZE
            assert adapter.unwrap(wrapped, context) == key

    def test_no_key_is_made_for_no_context(self, adapter: KmsAdapter, count_calls: Callable[[], int]) -> None:
        assert isinstance(adapter, SupportsGeneration)
        before = count_calls()
        assert adapter.generate_data_keys([]) == []
        assert count_calls() == before


class KmsRewrapContract(KmsAdapterFixtures):
    """What an adapter with ``rewrap_many`` must do beside."""

    @pytest.fixture
    def rewrapper(self, adapter: KmsAdapter) -> SupportsRewrap:
        """The adapter under test, as one that rewraps."""
        assert isinstance(adapter, SupportsRewrap)
        return adapter

    def test_a_rewrapped_key_unwraps_to_itself_in_its_context(
        self, adapter: KmsAdapter, rewrapper: SupportsRewrap
    ) -> None:
        contexts = [_context() for _ in range(3)]
        made = [adapter.generate_data_key(context) for context in contexts]
        outcomes = rewrapper.rewrap_many(
            [(wrapped, context) for (_, wrapped), context in zip(made, contexts, strict=True)]
        )
        for (key, wrapped), outcome, context in zip(made, outcomes, contexts, strict=True):
            assert isinstance(outcome, WrappedKey)
            assert outcome.ciphertext != wrapped.ciphertext
            assert outcome.kek_uri == wrapped.kek_uri
            assert adapter.unwrap(outcome, context) == key
            with pytest.raises(IntegrityError):
                adapter.unwrap(outcome, replace(context, purpose="branch"))

    def test_each_item_of_a_rewrap_has_its_own_outcome(
        self, adapter: KmsAdapter, rewrapper: SupportsRewrap, context: EncryptionContext
    ) -> None:
        _, wrapped = adapter.generate_data_key(context)
        elsewhere = replace(wrapped, kek_uri="elsewhere://key")
        edited = replace(wrapped, ciphertext=wrapped.ciphertext[:-4])
        good, foreign, bad, misplaced = rewrapper.rewrap_many(
            [(wrapped, context), (elsewhere, context), (edited, context), (wrapped, _context())]
        )
        assert isinstance(good, WrappedKey)
        assert isinstance(foreign, NotMyKeyError)
        assert isinstance(bad, IntegrityError)
        assert isinstance(misplaced, IntegrityError)

    def test_an_empty_rewrap_is_empty(
        self, rewrapper: SupportsRewrap, count_calls: Callable[[], int]
    ) -> None:
        before = count_calls()
        assert rewrapper.rewrap_many([]) == []
        assert count_calls() == before


def _context() -> EncryptionContext:
    return EncryptionContext(uuid4(), "data", "contract")


__all__ = [
    "KmsAdapterContract",
    "KmsAdapterFixtures",
    "KmsBatchContract",
    "KmsGenerationContract",
    "KmsRewrapContract",
]
