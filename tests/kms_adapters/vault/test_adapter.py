"""Wrapping and unwrapping under a real OpenBao."""

import copy
import pickle
from dataclasses import replace

import pytest

from eventseal.errors import ConfigurationError, IntegrityError, KmsKeyStateError, NotMyKeyError
from eventseal.kms import (
    EncryptionContext,
    KmsAdapter,
    SupportsBatch,
    SupportsCheck,
    SupportsRewrap,
    SupportsVersions,
    WrappedKey,
    adapter_from_uri,
)
from eventseal_kms.vault import Token, VaultSettings, VaultTransitAdapter

KEY = bytes(range(32))


def test_it_offers_every_capability(adapter):
    for protocol in (KmsAdapter, SupportsBatch, SupportsRewrap, SupportsCheck, SupportsVersions):
        assert isinstance(adapter, protocol)


def test_a_wrapped_key_comes_back_under_its_context(adapter, context, key_name):
    wrapped = adapter.wrap(KEY, context)
    assert wrapped.kek_uri == adapter.uri == f"vault-transit://transit/{key_name}"
    assert wrapped.kek_version == "v1"
    assert wrapped.ciphertext.startswith(b"vault:v1:")
    assert adapter.unwrap(wrapped, context) == KEY


def test_a_generated_key_has_32_bytes_of_its_own(adapter, context):
    keys = {adapter.generate_data_key(context)[0] for _ in range(3)}
    assert len(keys) == 3
    assert {len(key) for key in keys} == {32}


def test_one_call_makes_a_key_and_one_opens_it(openbao, adapter, context):
    adapter.generate_data_key(context)
    with openbao.counted("transit/") as made:
        _, wrapped = adapter.generate_data_key(context)
        adapter.unwrap(wrapped, context)
    assert [path.split("/")[1] for _, path in made] == ["encrypt", "decrypt"]


def test_what_the_key_is_is_asked_once_and_only_before_wrapping(openbao, client, key_name, context):
    first, second = (VaultTransitAdapter("transit", key_name, client=client) for _ in range(2))
    with openbao.counted("transit/keys/") as asked:
        _, wrapped = first.generate_data_key(context)
        first.wrap(KEY, context)
        second.unwrap(wrapped, context)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "other",
    [{"purpose": "branch"}, {"application": "shop2"}, {"key_id": "0192f0c1-0000-7000-8000-000000000000"}],
)
def test_a_context_that_differs_is_not_opened(adapter, context, other):
    from uuid import UUID

    changed = replace(
        context, **{name: UUID(value) if name == "key_id" else value for name, value in other.items()}
    )
    wrapped = adapter.wrap(KEY, context)
    with pytest.raises(IntegrityError, match=str(changed.key_id)):
        adapter.unwrap(wrapped, changed)


def test_contexts_that_join_to_the_same_text_are_kept_apart(adapter, context):
    one = EncryptionContext(context.key_id, "data", "ab")
    two = EncryptionContext(context.key_id, "dataa", "b")
    with pytest.raises(IntegrityError):
        adapter.unwrap(adapter.wrap(KEY, one), two)


def test_every_edited_byte_of_a_wrapping_is_refused(adapter, context):
    wrapped = adapter.wrap(KEY, context)
    edited = []
    for place in range(len(wrapped.ciphertext)):
        for flip in (1, 2):
            changed = bytearray(wrapped.ciphertext)
            changed[place] ^= flip
            edited.append((replace(wrapped, ciphertext=bytes(changed)), context))
    outcomes = adapter.unwrap_many(edited)
    assert {type(outcome) for outcome in outcomes} == {IntegrityError}


@pytest.mark.parametrize("length", [0, 8, 9, 40])
def test_a_wrapping_cut_short_is_refused(adapter, context, length):
    wrapped = adapter.wrap(KEY, context)
    with pytest.raises(IntegrityError):
        adapter.unwrap(replace(wrapped, ciphertext=wrapped.ciphertext[:length]), context)


def test_a_version_column_that_was_edited_is_refused_before_any_call(adapter, context, counting):
    wrapped = adapter.wrap(KEY, context)
    counting.tries.clear()
    with pytest.raises(IntegrityError):
        adapter.unwrap(replace(wrapped, kek_version="v2"), context)
    assert counting.tries == []


def test_a_wrapping_whose_version_is_unknown_still_opens(adapter, context):
    assert adapter.unwrap(replace(adapter.wrap(KEY, context), kek_version=None), context) == KEY


def test_a_wrapping_swapped_with_another_rows_is_refused(adapter, make_context):
    one, two = make_context(), make_context()
    wrapped = adapter.wrap(KEY, one)
    with pytest.raises(IntegrityError):
        adapter.unwrap(wrapped, two)


def test_a_wrapping_that_names_another_kek_is_not_mine_and_nothing_is_called(adapter, context, counting):
    wrapped = adapter.wrap(KEY, context)
    counting.tries.clear()
    for uri in ("vault-transit://transit/other", "aws-kms://arn", f"{wrapped.kek_uri}/", ""):
        with pytest.raises(NotMyKeyError) as caught:
            adapter.unwrap(replace(wrapped, kek_uri=uri), context)
        assert caught.value.kek_uri == uri
    assert counting.tries == []


def test_another_transit_keys_wrapping_under_my_name_is_refused(openbao, adapter, client, context):
    openbao.client().secrets.transit.create_key("foreign", derived=True)
    foreign = VaultTransitAdapter("transit", "foreign", client=client).wrap(KEY, context)
    with pytest.raises(IntegrityError) as caught:
        adapter.unwrap(replace(foreign, kek_uri=adapter.uri), context)
    assert "If the address names another Vault" in caught.value.remedy


def test_a_key_made_again_under_the_same_name_opens_nothing_old_and_says_why(
    openbao, adapter, context, key_name
):
    wrapped = adapter.wrap(KEY, context)
    transit = openbao.client().secrets.transit
    transit.update_key_configuration(key_name, deletion_allowed=True)
    transit.delete_key(key_name)
    with pytest.raises(KmsKeyStateError, match="there is no such transit key"):
        adapter.unwrap(wrapped, context)
    transit.create_key(key_name, derived=True)
    with pytest.raises(IntegrityError) as caught:
        adapter.unwrap(wrapped, context)
    assert "deleted and created again" in caught.value.remedy


def test_only_keys_of_32_bytes_are_wrapped(adapter, context, counting):
    for length in (0, 16, 31, 33):
        with pytest.raises(ConfigurationError, match=f"{length} bytes"):
            adapter.wrap(bytes(length), context)
    assert counting.tries == []


def test_what_was_wrapped_by_others_and_is_no_key_is_refused(openbao, adapter, context, key_name):
    import base64

    made = openbao.client().secrets.transit.encrypt_data(
        key_name, base64.b64encode(b"short").decode(), context=base64.b64encode(context.canonical()).decode()
    )
    wrapped = WrappedKey(
        kek_uri=adapter.uri, kek_version="v1", ciphertext=made["data"]["ciphertext"].encode()
    )
    with pytest.raises(IntegrityError, match="does not hold 32 bytes"):
        adapter.unwrap(wrapped, context)


def test_a_missing_key_is_not_made_by_mistake(openbao, client, context):
    adapter = VaultTransitAdapter("transit", "typo", client=client)
    with pytest.raises(KmsKeyStateError, match="no such transit key") as caught:
        adapter.generate_data_key(context)
    assert "vault write transit/keys/typo derived=true" in caught.value.remedy
    assert "typo" not in openbao.client().secrets.transit.list_keys()["data"]["keys"]


def test_a_key_that_is_not_derived_is_refused_until_there_is_one_that_is(openbao, client, context):
    transit = openbao.client().secrets.transit
    transit.create_key("plain")
    adapter = VaultTransitAdapter("transit", "plain", client=client)
    for _ in range(2):
        with pytest.raises(KmsKeyStateError, match="not derived"):
            adapter.wrap(KEY, context)
    transit.update_key_configuration("plain", deletion_allowed=True)
    transit.delete_key("plain")
    transit.create_key("plain", derived=True)
    assert adapter.wrap(KEY, context).kek_version == "v1"


def test_a_key_that_cannot_encrypt_is_refused(openbao, client, context):
    openbao.client().secrets.transit.create_key("signer", key_type="ed25519")
    with pytest.raises(KmsKeyStateError, match="cannot encrypt"):
        VaultTransitAdapter("transit", "signer", client=client).wrap(KEY, context)


def test_an_unknown_mount_is_named_with_its_remedy(client, context):
    adapter = VaultTransitAdapter("nowhere", "app", client=client)
    with pytest.raises(KmsKeyStateError, match="no engine is mounted there") as caught:
        adapter.wrap(KEY, context)
    assert "vault secrets enable -path=nowhere transit" in caught.value.remedy
    wrapped = WrappedKey(kek_uri=adapter.uri, kek_version=None, ciphertext=b"vault:v1:AAAA")
    with pytest.raises(KmsKeyStateError, match="no engine is mounted there"):
        adapter.unwrap(wrapped, context)


def test_another_engine_at_the_mount_is_told(client, context):
    with pytest.raises(KmsKeyStateError):
        VaultTransitAdapter("secret", "app", client=client).wrap(KEY, context)


def test_a_mount_may_have_several_segments_and_a_closing_slash(openbao, client, context):
    openbao.client().sys.enable_secrets_engine("transit", path="team/transit")
    openbao.client().secrets.transit.create_key("app", derived=True, mount_point="team/transit")
    adapter = VaultTransitAdapter("team/transit/", "app", client=client)
    assert adapter.uri == "vault-transit://team/transit/app"
    assert adapter.unwrap(adapter.wrap(KEY, context), context) == KEY


def test_a_namespace_holds_keys_of_its_own(openbao, context, key_name):
    root = openbao.client()
    root.adapter.post("/v1/sys/namespaces/sales")
    inside = openbao.client(namespace="sales")
    inside.sys.enable_secrets_engine("transit")
    inside.secrets.transit.create_key(key_name, derived=True)
    adapters = [
        VaultTransitAdapter(
            "transit",
            key_name,
            settings=VaultSettings(address=openbao.address, login=Token("root"), namespace=namespace),
        )
        for namespace in ("sales", None, "nobody")
    ]
    wrapped = adapters[0].wrap(KEY, context)
    assert adapters[0].unwrap(wrapped, context) == KEY
    with pytest.raises(IntegrityError):
        adapters[1].unwrap(wrapped, context)
    with pytest.raises(KmsKeyStateError, match="no such namespace"):
        adapters[2].unwrap(wrapped, context)


def test_the_environment_and_a_uri_are_all_it_needs(openbao, monkeypatch, context, key_name):
    monkeypatch.setenv("VAULT_ADDR", openbao.address)
    monkeypatch.setenv("VAULT_TOKEN", "root")
    adapter = adapter_from_uri(f"vault-transit://transit/{key_name}")
    assert isinstance(adapter, VaultTransitAdapter)
    assert adapter.unwrap(adapter.wrap(KEY, context), context) == KEY


def test_the_constructor_calls_nothing(monkeypatch):
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    VaultTransitAdapter("transit", "app")
    VaultTransitAdapter.from_uri("vault-transit://transit/app")


def test_a_client_and_settings_exclude_each_other(client, openbao):
    with pytest.raises(ConfigurationError, match="exclude each other"):
        VaultTransitAdapter(
            "transit",
            "app",
            client=client,
            settings=VaultSettings(address=openbao.address, login=Token("root")),
        )


def test_a_batch_size_is_positive(client):
    with pytest.raises(ConfigurationError, match="batch_size"):
        VaultTransitAdapter("transit", "app", client=client, batch_size=0)


def test_it_is_neither_pickled_nor_copied_and_its_repr_shows_no_token(adapter):
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pass its URI"):
            duplicate(adapter)
    assert repr(adapter) == f"<VaultTransitAdapter {adapter.uri}>"
