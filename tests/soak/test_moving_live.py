"""
A store moves from a key file to AWS KMS, there to another key, on to OpenBao and there to a new version.

Processes write and read all the time. Inside a service the worker that rewraps has no right to open a key.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from tests.faults.workers import READER, WRITER, Crew, length_of, tenant_of
from tests.fixtures.openbao import openbao
from tests.fixtures.sealed_shops import TENANTS, SealedShop, assert_sound, places_of, scope_of

from eventseal.errors import KmsForbiddenError
from eventseal.rotation import kek_report, rewrap, verify
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.testing import FakeAwsKms
from eventseal_kms.vault import VaultTransitAdapter

if TYPE_CHECKING:
    from typing import Self

    from eventseal.kms import KmsAdapter

__all__ = ["openbao"]

ROLES = (WRITER, WRITER, READER)
WORKER = "arn:aws:iam::111122223333:role/rewrap-worker"
ONLY_REWRAP = 'path "transit/rewrap/{}" {{ capabilities = ["update"] }}'


class Application:
    """Processes on one store; they are replaced by others, with other KEKs, without a gap."""

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        self._url, self._environment = url, environment
        self._stack = ExitStack()
        self._crew: Crew | None = None
        self.written = 0

    def deploy(self, *keks: str) -> None:
        """Start processes with these KEKs, and only then end those before."""
        readers = ROLES if self._crew is None else (READER,)
        # Two may not write one stream: the new ones begin to write when the old ones have ended.
        overlapping = Crew(self._url, keks, readers, environment=self._environment)
        following = self._stack.enter_context(overlapping)
        if self._crew is not None:
            self._end(self._crew)
            following = self._stack.enter_context(Crew(self._url, keks, ROLES, environment=self._environment))
            overlapping.stop()
        self._crew = following

    def end(self) -> None:
        assert self._crew is not None
        self._end(self._crew)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self, crew: Crew) -> None:
        for answer in crew.stop():
            assert answer["done"] > 0
            assert answer["outages"] == 0
            self.written += answer["role"] == WRITER and answer["done"]


@pytest.fixture
def aws() -> FakeAwsKms:
    return FakeAwsKms()


@pytest.mark.soak
@pytest.mark.postgres
@pytest.mark.timeout(1_800)
def test_a_live_store_moves_from_kms_to_kms_and_no_item_is_touched(
    postgres_url, tmp_path, aws, openbao
) -> None:
    local = LocalKmsAdapter.create(tmp_path / "dev.key")
    first_key, second_key = aws.create_key(), aws.create_key()
    transit = f"key-{uuid4().hex}"
    openbao.client().secrets.transit.create_key(transit, derived=True)
    first, second = (AwsKmsAdapter(key, client=aws.client()) for key in (first_key, second_key))
    vault = VaultTransitAdapter("transit", transit, client=openbao.client())
    local_uri = f"local://{tmp_path / 'dev.key'}"

    with SealedShop(postgres_url, local) as shop:
        shop.set_up().keyring.prepare([scope_of(tenant) for tenant in TENANTS])
        for number in range(len(TENANTS)):
            shop.append(tenant_of(number), 0, 50, number=number)
        before = shop.rows()

    with aws.serve() as endpoint:
        environment = {
            **{name.upper(): value for name, value in aws.credentials().items()},
            "AWS_ENDPOINT_URL_KMS": endpoint,
            "VAULT_ADDR": openbao.address,
            "VAULT_TOKEN": openbao.token,
        }
        with Application(postgres_url, environment) as application:
            application.deploy(local_uri)
            application.deploy(local_uri, first.uri)
            move(postgres_url, [local, first], to=first)
            application.deploy(first.uri)
            (tmp_path / "dev.key").unlink()

            application.deploy(first.uri, second.uri)
            aws.attach_policy(WORKER, reencrypts_only(first_key, second_key))
            limited = [AwsKmsAdapter(key, client=aws.client(WORKER)) for key in (first_key, second_key)]
            with SealedShop(postgres_url, limited) as shop, pytest.raises(KmsForbiddenError):
                shop.keyring.prepare(["it makes and opens no key"])
            move(postgres_url, limited, to=limited[1], readers=[second])
            application.deploy(second.uri)
            aws.client().disable_key(KeyId=first_key)

            application.deploy(second.uri, vault.uri)
            move(postgres_url, [second, vault], to=vault)
            application.deploy(vault.uri)
            aws.client().disable_key(KeyId=second_key)

            vault.rotate()
            limited_vault = VaultTransitAdapter(
                "transit", transit, client=openbao.client(token=only_rewraps(openbao, transit))
            )
            move(postgres_url, [limited_vault], to=limited_vault, readers=[vault])
            vault.forbid_versions_before("v2")
            application.deploy(vault.uri)
            application.end()
    assert application.written > 10
    with SealedShop(postgres_url, vault) as shop:
        after = shop.rows()
        assert {place: after[place] for place in before} == before
        lengths = {number: length_of(shop, number) for number in range(len(TENANTS))}
        places = {p for n, count in lengths.items() for p in places_of(tenant_of(n), count, number=n)}
        assert_sound(shop, places)
        assert {(use.kek_uri, use.kek_version) for use in kek_report(shop).uses} == {(vault.uri, "v2")}
        assert len(after) > len(before)


def move(
    url: str, keks: list[KmsAdapter], *, to: KmsAdapter, readers: list[KmsAdapter] | None = None
) -> None:
    """Rewrap; where the worker opens nothing itself, others do, and it drops the old wrappings after that."""
    for _ in range(4):
        with SealedShop(url, keks) as worker:
            result = rewrap(worker, to=to)
            assert result.failed == 0, result.failures
            if not result.left:
                assert result.by_kek.keys() == {to.uri}
                return
        with SealedShop(url, readers or [to]) as reader:
            assert verify(reader).failed == 0
    raise AssertionError(result)


def reencrypts_only(*keys: str) -> dict[str, object]:
    actions = ["kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:DescribeKey"]
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": actions, "Resource": list(keys)}],
    }


def only_rewraps(openbao, transit: str) -> str:
    """A token that may rewrap under one key, and nothing else."""
    root = openbao.client()
    root.sys.create_or_update_policy(f"only-{transit}", ONLY_REWRAP.format(transit))
    made = root.auth.token.create(policies=[f"only-{transit}"], no_default_policy=True)
    return str(made["auth"]["client_token"])
