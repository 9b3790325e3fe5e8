"""The encryption context: what a KMS binds to a wrapped key."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures.untimed import untimed

from eventseal.kms import EncryptionContext, WrappedKey

KEY_ID = UUID("018f3c00-0000-7000-8000-000000000001")
contexts = st.builds(EncryptionContext, st.uuids(), st.text(max_size=8), st.text(max_size=8))


def test_a_kms_sees_key_id_purpose_and_application_and_nothing_else():
    context = EncryptionContext(KEY_ID, "data", "shop")
    assert context.as_mapping() == {
        "eventseal:key-id": str(KEY_ID),
        "eventseal:purpose": "data",
        "eventseal:application": "shop",
    }


def test_the_canonical_form_is_the_pairs_length_prefixed_in_order_of_their_names():
    canonical = EncryptionContext(KEY_ID, "data", "shop").canonical()
    expected = b""
    for text in (
        "eventseal:application",
        "shop",
        "eventseal:key-id",
        str(KEY_ID),
        "eventseal:purpose",
        "data",
    ):
        expected += len(text).to_bytes(4, "big") + text.encode()
    assert canonical == expected


@untimed
@given(contexts, contexts)
def test_two_contexts_have_the_same_canonical_form_only_if_they_are_equal(one, other):
    assert (one.canonical() == other.canonical()) == (one == other)


def test_a_wrapped_key_does_not_show_its_ciphertext():
    wrapped = WrappedKey(kek_uri="local://x", kek_version=None, ciphertext=b"secret-ciphertext")
    assert "secret-ciphertext" not in repr(wrapped)
