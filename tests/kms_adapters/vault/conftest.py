import threading
import uuid

import pytest
import requests
from tests.fixtures.openbao import OpenBao, openbao

from eventseal.kms import EncryptionContext
from eventseal_kms.vault import RetryPolicy, VaultTransitAdapter

__all__ = ["openbao"]


class CountingSession(requests.Session):
    """Counts the tries: what the client sends, whether or not an answer comes."""

    def __init__(self):
        super().__init__()
        self.tries = []
        self._counting = threading.Lock()

    def request(self, method, url, **options):
        with self._counting:
            self.tries.append((method, url.partition("/v1/")[2]))
        return super().request(method, url, **options)


@pytest.fixture(autouse=True)
def _no_vault_variables(monkeypatch, tmp_path):
    """What this machine's user has set must not reach a test."""
    import os

    for name in list(os.environ):
        if name.startswith(("VAULT_", "BAO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def persistent_openbao(tmp_path_factory):
    """A server that may be sealed, killed and started again; whoever does so starts it again."""
    server = OpenBao(tmp_path_factory.mktemp("openbao"), persistent=True)
    try:
        server.start()
        server.client().sys.enable_secrets_engine("transit")
        yield server
    finally:
        server.stop()


@pytest.fixture
def key_name(openbao):
    """A derived transit key, of this test alone."""
    name = f"key-{uuid.uuid4().hex}"
    openbao.client().secrets.transit.create_key(name, derived=True)
    return name


@pytest.fixture
def counting():
    with CountingSession() as session:
        yield session


@pytest.fixture
def client(openbao, counting):
    """A client of the root token, whose tries are counted."""
    return openbao.client(session=counting)


@pytest.fixture
def adapter(client, key_name, patient):
    return VaultTransitAdapter("transit", key_name, client=client, retries=patient)


@pytest.fixture
def make_context():
    def make(application="shop", purpose="data"):
        return EncryptionContext(key_id=uuid.uuid4(), purpose=purpose, application=application)

    return make


@pytest.fixture
def context(make_context):
    return make_context()


@pytest.fixture
def patient():
    """Bounds that no busy machine comes near, for tests that count what is sent; the tries are the usual."""
    return RetryPolicy(deadline=120, try_timeout=60)


@pytest.fixture
def impatient():
    """Bounds for tests of what never answers."""
    return RetryPolicy(deadline=1.5, try_timeout=0.7, first_wait=0.01)
