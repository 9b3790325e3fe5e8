"""
The tests that every KMS adapter must pass.

Subclass the suites, override their fixtures, and run pytest::

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
    """The fixtures of the suites. Override each fixture that raises."""

    @pytest.fixture
    def make_adapter(self) -> Callable[[], KmsAdapter]:
        """
        Return a function that creates an adapter.

        Each call creates a new one, always of the same KEK. Override it.
        """
        raise NotImplementedError("override the fixture `make_adapter`")

    @pytest.fixture
    def other_adapter(self) -> KmsAdapter:
        """An adapter of another KEK of the same service. Override it."""
        raise NotImplementedError("override the fixture `other_adapter`")

    @pytest.fixture
    def count_calls(self) -> Callable[[], int]:
        """
        Return a function that counts the calls that have reached the KMS.

        Override it. If the KMS is never called, the function returns 0.
        """
        raise NotImplementedError("override the fixture `count_calls`")

    @pytest.fixture
    def secrets(self) -> Collection[str]:
        """Secrets, such as a token, that no representation may show. Override it if there are any."""
        return ()

    @pytest.fixture
    def adapter(self, make_adapter: Callable[[], KmsAdapter]) -> KmsAdapter:
        """The adapter under test."""
        return make_adapter()

    @pytest.fixture
    def context(self) -> EncryptionContext:
        """The encryption context of a data key."""
        return _context()


class KmsAdapterContract(KmsAdapterFixtures):
    """The tests that every adapter must pass."""

    def test_it_satisfies_the_protocol(self, adapter: KmsAdapter) -> None:
        """The adapter must have all members of ``KmsAdapter``."""
        assert isinstance(adapter, KmsAdapter)
        assert "://" in adapter.uri

    def test_a_uri_that_is_none_is_refused_when_the_adapter_is_made(self, adapter: KmsAdapter) -> None:
        """The adapter must refuse a URI without a key."""
        scheme = adapter.uri.partition("://")[0]
        with pytest.raises(ConfigurationError):
            type(adapter).from_uri(f"{scheme}://")  # type: ignore[attr-defined]

    def test_making_an_adapter_makes_no_call(
        self, make_adapter: Callable[[], KmsAdapter], count_calls: Callable[[], int]
    ) -> None:
        """Creating an adapter must not call the KMS."""
        before = count_calls()
        adapter = make_adapter()
        assert adapter.uri
        assert repr(adapter)
        assert count_calls() == before

    def test_a_generated_key_unwraps_to_itself(self, adapter: KmsAdapter, context: EncryptionContext) -> None:
        """A generated key must have 32 bytes and unwrap to itself."""
        key, wrapped = adapter.generate_data_key(context)
        assert len(key) == KEY_SIZE
        assert adapter.unwrap(wrapped, context) == key

    def test_no_two_generated_keys_are_equal(self, adapter: KmsAdapter, context: EncryptionContext) -> None:
        """Generated keys and their wrappings must all differ."""
        made = [adapter.generate_data_key(context) for _ in range(5)]
        assert len({key for key, _ in made}) == len({wrapped.ciphertext for _, wrapped in made}) == len(made)

    def test_a_given_key_unwraps_to_itself(self, adapter: KmsAdapter, context: EncryptionContext) -> None:
        """A wrapped key must unwrap to itself."""
        key = bytes(range(KEY_SIZE))
        wrapped = adapter.wrap(key, context)
        assert key not in wrapped.ciphertext
        assert adapter.unwrap(wrapped, context) == key

    def test_two_wrappings_of_one_key_differ(self, adapter: KmsAdapter, context: EncryptionContext) -> None:
        """Two wrappings of one key must differ."""
        key = bytes(range(KEY_SIZE))
        assert adapter.wrap(key, context).ciphertext != adapter.wrap(key, context).ciphertext

    def test_the_stored_uri_is_resolved_and_stays(
        self, make_adapter: Callable[[], KmsAdapter], context: EncryptionContext
    ) -> None:
        """The stored URI must name the KEK itself, for every process."""
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
        """A wrapping must not unwrap in another encryption context."""
        key, wrapped = adapter.generate_data_key(context)
        other = replace(context, **edit)
        for wrapping in (wrapped, adapter.wrap(key, context)):
            with pytest.raises(IntegrityError):
                adapter.unwrap(wrapping, other)

    def test_parts_of_the_context_do_not_run_together(self, adapter: KmsAdapter) -> None:
        """The adapter must bind each part of the context separately."""
        key_id = uuid4()
        _, wrapped = adapter.generate_data_key(EncryptionContext(key_id, "data", "shop"))
        for purpose, application in (("datas", "hop"), ("dat", "ashop"), ("shop", "data")):
            with pytest.raises(IntegrityError):
                adapter.unwrap(wrapped, EncryptionContext(key_id, purpose, application))

    def test_an_edited_wrapping_gives_no_other_key(
        self, adapter: KmsAdapter, context: EncryptionContext
    ) -> None:
        """
        An edited wrapping must not unwrap to another key.

        A text encoding may decode one edit to the same bytes, and so to the same key.
        """
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
        """The adapter must refuse a wrapping of another length."""
        _, wrapped = adapter.generate_data_key(context)
        whole = wrapped.ciphertext
        for ciphertext in (b"", whole[:1], whole[: len(whole) // 2], whole[:-4], whole + whole[-4:]):
            with pytest.raises(IntegrityError):
                adapter.unwrap(replace(wrapped, ciphertext=ciphertext), context)

    def test_a_wrapping_put_beside_another_key_is_refused(
        self, adapter: KmsAdapter, context: EncryptionContext
    ) -> None:
        """The adapter must refuse a wrapping that belongs to another key."""
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
        """A foreign wrapping must raise ``NotMyKeyError``, without a call."""
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
        """The adapter must refuse a foreign wrapping under its own URI."""
        _, mine = adapter.generate_data_key(context)
        _, foreign = other_adapter.generate_data_key(context)
        with pytest.raises(IntegrityError):
            adapter.unwrap(replace(foreign, kek_uri=mine.kek_uri), context)

    def test_no_representation_shows_a_secret(
        self, adapter: KmsAdapter, context: EncryptionContext, secrets: Collection[str]
    ) -> None:
        """No representation may show a key, a wrapping or a secret."""
        key, wrapped = adapter.generate_data_key(context)
        shown = f"{adapter!r} {adapter} {wrapped!r} {wrapped}"
        for secret in (*secrets, key.hex(), repr(key)[2:-1], repr(wrapped.ciphertext)[2:-1]):
            assert secret not in shown

    def test_threads_share_an_adapter(self, adapter: KmsAdapter) -> None:
        """Several threads must be able to use one adapter."""

        def round_trip(_: int) -> bool:
            context = _context()
            key, wrapped = adapter.generate_data_key(context)
            return adapter.unwrap(wrapped, context) == key

        with ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(round_trip, range(THREADS * 4)))


class KmsBatchContract(KmsAdapterFixtures):
    """The tests of an adapter with ``wrap_many`` and ``unwrap_many``."""

    @pytest.fixture
    def batches(self, adapter: KmsAdapter) -> SupportsBatch:
        """The adapter under test, which must accept batches."""
        assert isinstance(adapter, SupportsBatch)
        return adapter

    def test_a_batch_wraps_and_unwraps_in_order(self, batches: SupportsBatch) -> None:
        """A batch must return its results in order."""
        keys = [(bytes([number]) * KEY_SIZE, _context()) for number in range(40)]
        wrapped = batches.wrap_many(keys)
        pairs = [(cast("WrappedKey", one), context) for one, (_, context) in zip(wrapped, keys, strict=True)]
        assert batches.unwrap_many(pairs) == [key for key, _ in keys]

    def test_an_empty_batch_is_empty(self, batches: SupportsBatch, count_calls: Callable[[], int]) -> None:
        """An empty batch must not call the KMS."""
        before = count_calls()
        assert batches.wrap_many([]) == batches.unwrap_many([]) == []
        assert count_calls() == before

    def test_each_item_of_a_batch_has_its_own_outcome(
        self, adapter: KmsAdapter, batches: SupportsBatch, other_adapter: KmsAdapter
    ) -> None:
        """Each key of a batch must have its own outcome."""
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
    """The tests of an adapter with ``generate_data_keys``."""

    def test_keys_made_together_are_unwrapped_under_their_contexts(self, adapter: KmsAdapter) -> None:
        """Keys generated together must unwrap in their own contexts."""
        assert isinstance(adapter, SupportsGeneration)
        contexts = [_context() for _ in range(40)]
        made = [outcome for outcome in adapter.generate_data_keys(contexts) if isinstance(outcome, tuple)]
        assert len(made) == len(contexts)
        assert len({key for key, _ in made}) == len(contexts)
        for (key, wrapped), context in zip(made, contexts, strict=True):
            assert len(key) == KEY_SIZE
            assert adapter.unwrap(wrapped, context) == key

    def test_no_key_is_made_for_no_context(self, adapter: KmsAdapter, count_calls: Callable[[], int]) -> None:
        """Without contexts, there must be no keys and no call."""
        assert isinstance(adapter, SupportsGeneration)
        before = count_calls()
        assert adapter.generate_data_keys([]) == []
        assert count_calls() == before


class KmsRewrapContract(KmsAdapterFixtures):
    """The tests of an adapter with ``rewrap_many``."""

    @pytest.fixture
    def rewrapper(self, adapter: KmsAdapter) -> SupportsRewrap:
        """The adapter under test, which must rewrap."""
        assert isinstance(adapter, SupportsRewrap)
        return adapter

    def test_a_rewrapped_key_unwraps_to_itself_in_its_context(
        self, adapter: KmsAdapter, rewrapper: SupportsRewrap
    ) -> None:
        """A rewrapped key must unwrap to itself, only in its context."""
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
        """Each wrapping of a rewrap must have its own outcome."""
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
        """An empty rewrap must not call the KMS."""
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
