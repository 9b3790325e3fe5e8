"""What hangs on which KEK and version, and which of them may not go yet."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text
from tests.fixtures.versioned_kms import VersionedKms

from eventseal.errors import ConfigurationError, JobError
from eventseal.keys import DataKey
from eventseal.rotation import kek_report, refuse_needed_kek, rewrap
from eventseal.testing import FakeBatchKms
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.testing import FakeAwsKms


def fill(shop, count: int = 4) -> list:
    keys = shop.seal.keyring.sealing_keys({f"tenant:{n}": 1 for n in range(count)})
    return [key.key_id for key in keys.values()]


def opened(shop, key_ids) -> bool:
    return all(isinstance(key, DataKey) for key in shop.seal.keyring.opening_keys(key_ids).values())


@pytest.fixture
def kek() -> VersionedKms:
    return VersionedKms("kek")


@pytest.fixture
def under(open_shop, store_url):
    def under(*keks, **settings):
        return open_shop(store_url, list(keks), **settings)

    return under


def uses(shop) -> list[tuple]:
    return [(use.kek_uri, use.kek_version, use.wrappings, use.verified) for use in kek_report(shop.seal).uses]


@pytest.mark.slow
def test_the_report_counts_by_kek_and_version_and_asks_no_kek(under, kek) -> None:
    key_ids = fill(under(kek))
    kek.rotate()
    rewrap(under(kek).seal)
    assert opened(under(kek), key_ids[:2])
    shop = under(kek)
    kek.calls.clear()
    assert uses(shop) == [("fake://kek", "1", 5, 0), ("fake://kek", "2", 5, 3)]
    assert kek_report(shop.seal).by_kek == {"fake://kek": 10}
    assert kek.count() == 0
    report = kek_report(shop.seal).to_json()
    assert json.loads(json.dumps(report))["keks"][1] == {
        "kek": "fake://kek",
        "version": "2",
        "wrappings": 5,
        "verified": 3,
    }


def test_branch_keys_are_in_the_report_too(under, kek) -> None:
    fill(under(kek, branches=1), 7)
    assert [use[2:] for use in uses(under(kek))] == [(7, 0), (2, 0)]


def test_a_store_without_keys_has_nothing_to_report(under, kek) -> None:
    assert uses(under(kek)) == []
    with pytest.raises(ConfigurationError) as caught:
        refuse_needed_kek(under(kek).seal, "nothing://x")
    assert str(caught.value).endswith(". No key is wrapped yet")


def test_a_kek_that_opens_keys_nothing_else_opens_may_not_go(under, kek) -> None:
    fill(under(kek))
    shop = under(kek)
    with pytest.raises(JobError, match="5 keys cannot be opened") as caught:
        refuse_needed_kek(shop.seal, "fake://kek")
    assert "eventseal rewrap" in caught.value.remedy
    assert caught.value.keys == 5


@pytest.mark.slow
def test_a_kek_may_go_if_every_key_is_seen_to_open_without_it(under, kek) -> None:
    old = FakeBatchKms("old")
    fill(under(old, kek))
    shop = under(old, kek)
    old.calls.clear(), kek.calls.clear()
    assert refuse_needed_kek(shop.seal, "fake://old") == 5
    assert sum(len(call.key_ids) for call in kek.calls) == 5  # one unwrapping a key
    shop.execute(
        "DELETE FROM eventseal_key_wrappings WHERE kek_uri = 'fake://kek' AND key_id = ("
        "SELECT key_id FROM eventseal_encryption_keys WHERE purpose = 'data' ORDER BY key_id LIMIT 1)"
    )
    with pytest.raises(JobError, match="1 key cannot be opened"):
        refuse_needed_kek(shop.seal, "fake://old")
    assert refuse_needed_kek(shop.seal, "fake://kek") == 4


@pytest.mark.slow
def test_a_kek_that_is_not_configured_stands_in_for_none(under, kek) -> None:
    old = FakeBatchKms("old")
    key_ids = fill(under(old, kek))
    assert opened(under(kek), key_ids)
    with pytest.raises(JobError):
        refuse_needed_kek(under(old).seal, "fake://old")
    assert refuse_needed_kek(under(kek).seal, "fake://old") == 5


def test_a_kek_may_go_once_everything_is_rewrapped(under, kek) -> None:
    old = FakeBatchKms("old")
    fill(under(old))
    shop = under(old, kek)
    rewrap(shop.seal, to=kek)
    assert uses(shop) == [("fake://kek", "1", 5, 5)]


@pytest.mark.slow
def test_a_version_may_go_once_a_newer_one_was_opened(under, kek) -> None:
    key_ids = fill(under(kek))
    kek.rotate()
    shop = under(kek)
    rewrap(shop.seal)
    kek.forbidden.add("2")
    with pytest.raises(JobError, match="version 1 of fake://kek is needed: without it, 5 keys"):
        refuse_needed_kek(shop.seal, "fake://kek", "1")
    kek.forbidden.clear()
    assert refuse_needed_kek(shop.seal, "fake://kek", "1") == 5
    assert opened(under(kek), key_ids)
    rewrap(shop.seal)
    with pytest.raises(JobError, match="5 keys cannot be opened"):
        refuse_needed_kek(shop.seal, "fake://kek", "2")


@pytest.mark.slow
@pytest.mark.parametrize("state", ["needed", "proved", "gone"])
def test_a_version_that_is_not_there_is_refused_by_name_in_every_state(under, kek, state) -> None:
    key_ids = fill(under(kek))
    kek.rotate()
    shop = under(kek)
    if state != "needed":
        rewrap(shop.seal)
        assert opened(under(kek), key_ids)
    if state == "gone":
        rewrap(shop.seal)
    for version in ("7", "1" if state == "gone" else "x"):
        with pytest.raises(ConfigurationError, match=f"under version '{version}' of fake://kek") as refused:
            refuse_needed_kek(shop.seal, "fake://kek", version)
        assert (
            refused.value.remedy
            == {
                "needed": "Name one of these versions: 1.",
                "proved": "Name one of these versions: 1, 2.",
                "gone": "Name one of these versions: 2.",
            }[state]
        )


@pytest.mark.slow
def test_a_kek_that_is_not_there_may_go_only_if_it_is_configured(under, kek) -> None:
    fill(under(kek))
    with pytest.raises(ConfigurationError, match="no key is wrapped under fake://old"):
        refuse_needed_kek(under(kek).seal, "fake://old")
    assert refuse_needed_kek(under(kek, FakeBatchKms("old")).seal, "fake://old") == 0


@pytest.mark.parametrize("typed", ["1", "V1"], ids=["number", "capital"])
def test_a_version_that_is_written_otherwise_is_no_version_that_may_go(under, kek, typed) -> None:
    shop = under(kek)
    fill(shop)
    with shop.seal.datastore.engine.begin() as connection:  # as Vault's are written
        connection.execute(text("UPDATE eventseal_key_wrappings SET kek_version = 'v1'"))
    with pytest.raises(ConfigurationError, match="no key is wrapped under version") as refused:
        refuse_needed_kek(shop.seal, "fake://kek", typed)
    assert refused.value.remedy == "Did you mean v1?"


@pytest.mark.parametrize("typed", ["2", ""])
def test_no_other_version_is_suggested(under, kek, typed) -> None:
    shop = under(kek)
    fill(shop)
    with shop.seal.datastore.engine.begin() as connection:
        connection.execute(text("UPDATE eventseal_key_wrappings SET kek_version = 'v12'"))
    with pytest.raises(ConfigurationError, match="no key is wrapped under version") as refused:
        refuse_needed_kek(shop.seal, "fake://kek", typed)
    assert refused.value.remedy == "Name one of these versions: v12."


@pytest.mark.slow
def test_a_kek_is_known_by_its_configured_name_and_by_its_stored_one(under, tmp_path) -> None:
    path = tmp_path / "dev.key"
    local = LocalKmsAdapter.create(path)
    fill(under(local))
    shop = under(local)
    for name in (local.uri, f"local://{path}"):
        with pytest.raises(JobError, match="5 keys cannot be opened"):
            refuse_needed_kek(shop.seal, name)
    other = tmp_path / "other.key"
    LocalKmsAdapter.create(other)
    with pytest.raises(ConfigurationError, match="it is not configured"):
        refuse_needed_kek(shop.seal, f"local://{other}")
    assert refuse_needed_kek(under(local, LocalKmsAdapter(other)).seal, LocalKmsAdapter(other).uri) == 0


@pytest.mark.slow
def test_what_names_no_kek_is_refused_with_those_in_use(under, kek) -> None:
    fill(under(kek))
    for name in ("fake://", "kek", "local:///no/such/file", "nothing://x"):
        with pytest.raises(ConfigurationError, match="the KMS key cannot be used") as caught:
            refuse_needed_kek(under(kek).seal, name)
        assert str(caught.value).endswith(". Keys are wrapped under fake://kek")
        assert "eventseal status" in caught.value.remedy


@pytest.mark.slow
def test_under_aws_a_bare_arn_and_an_alias_name_the_key(under, monkeypatch) -> None:
    aws = FakeAwsKms()
    arn = aws.create_key(alias="alias/shop")
    (key,) = {f"aws-kms://{k['KeyArn']}" for k in aws.client().list_keys()["Keys"]}
    fill(under(AwsKmsAdapter(arn, client=aws.client())))
    shop = under(AwsKmsAdapter(arn, client=aws.client()))
    for name, value in aws.credentials().items():
        monkeypatch.setenv(name.upper(), value)
    with aws.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", url)
        for name in (key, key.removeprefix("aws-kms://"), arn):
            with pytest.raises(JobError, match="5 keys cannot be opened"):
                refuse_needed_kek(shop.seal, name)
    # By the configured adapter, with its own client.
    with pytest.raises(JobError, match="5 keys cannot be opened"):
        refuse_needed_kek(shop.seal, shop.seal.keyring.keks[0].uri)
    assert key.startswith("aws-kms://arn:aws:kms:")


def test_a_key_file_that_is_gone_is_asked_for_by_the_name_that_the_tables_had(under, kek) -> None:
    shop = under(kek)
    fill(shop)
    gone = "local://8c6a7c07-54a9-824d-bf34-7091987b9c7d"
    with pytest.raises(ConfigurationError, match="it is not configured"):
        refuse_needed_kek(shop.seal, gone)
    for name in (gone.upper().replace("LOCAL", "local"), gone.replace("-824d-", "-424d-")):
        with pytest.raises(ConfigurationError, match="the KMS key cannot be used"):
            refuse_needed_kek(shop.seal, name)
