"""The page docs/vault.md: its commands and programs run, its policies grant what they say and no more."""

import re
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import hvac.exceptions
import pytest
from tests.fixtures.openbao import OpenBao

from eventseal.errors import KmsForbiddenError
from eventseal.kms import EncryptionContext, KmsUse
from eventseal_kms.vault import VaultTransitAdapter
from eventseal_kms.vault.failures import MEANINGS

PAGE = Path(__file__).parents[3] / "docs" / "vault.md"
KEY = bytes(range(32))
HERE = "tests/kms_adapters/vault/test_page.py starts one and runs it -->"
POLICIES = dict(re.findall(r"^```hcl\n# (\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))

ACTIONS = {
    "read the key": ("get", "keys/orders", None),
    "encrypt": ("post", "encrypt/orders", "plaintext"),
    "decrypt": ("post", "decrypt/orders", "ciphertext"),
    "rewrap": ("post", "rewrap/orders", "ciphertext"),
    "rotate": ("post", "keys/orders/rotate", {}),
    "config": ("post", "keys/orders/config", {"min_decryption_version": 1}),
    "trim": ("post", "keys/orders/trim", {"min_available_version": 1}),
    "make the key": ("post", "keys/orders", {}),
    "delete the key": ("delete", "keys/orders", None),
    "export the key": ("get", "export/encryption-key/orders", None),
    "back the key up": ("get", "backup/orders", None),
    "encrypt under another key": ("post", "encrypt/others", "plaintext"),
    "encrypt under a key that is missing": ("post", "encrypt/missing", "plaintext"),
    "decrypt under another key": ("post", "decrypt/others", "ciphertext"),
    "list the keys": ("list", "keys", None),
    "use the plaintext data key path": ("post", "datakey/plaintext/orders", {}),
}
GRANTED = {
    "writer": {"read the key", "encrypt"},
    "reader": {"decrypt"},
    "rotator": {"read the key", "rotate", "rewrap"},
    "rewrapper": {"read the key", "rewrap"},
    "custodian": {"read the key", "config", "trim"},
    "roller": {"read the key", "encrypt", "decrypt", "rewrap", "rotate", "config", "trim"},
}


def blocks(language):
    """What the page has to run that needs a server, in order."""
    lines = PAGE.read_text().split("\n")
    found = []
    for number, line in enumerate(lines):
        if line.strip().endswith(HERE) and lines[number + 1].strip() == f"```{language}":
            indent = lines[number + 1].index("`")
            end = next(at for at in range(number + 2, len(lines)) if lines[at] == " " * indent + "```")
            found.append(textwrap.dedent("\n".join(lines[number + 2 : end])))
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """As the page leaves it: the engine and the key made by its commands."""
    server = OpenBao(tmp_path_factory.mktemp("openbao-page"))
    try:
        server.start()
        for block in blocks("console"):
            for command in block.splitlines():
                subprocess.run(
                    [server.program, *command.removeprefix("$ bao ").split()],
                    env={"BAO_ADDR": server.address, "BAO_TOKEN": server.token, "HOME": str(server.folder)},
                    check=True,
                    capture_output=True,
                    timeout=60,
                )
        server.client().secrets.transit.create_key("others", derived=True)
        yield server
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def _new_key(server):
    """Create the page's key again after each test: a trimmed version would be missing in the next."""
    yield
    transit = server.client().secrets.transit
    transit.update_key_configuration("orders", deletion_allowed=True)
    transit.delete_key("orders")
    transit.create_key("orders", derived=True)


@pytest.fixture
def token_with(server):
    """A token with the page's policies, and `default` as every token has."""

    def make(*names):
        root = server.client()
        for name in names:
            root.sys.create_or_update_policy(name, POLICIES[name])
        return root.auth.token.create(policies=[*names, "default"], ttl="1h")["auth"]["client_token"]

    return make


@pytest.mark.slow
def test_the_page_has_the_blocks_that_are_tested_here():
    assert len(blocks("console")) == 1
    assert len(blocks("python")) == 2
    assert set(POLICIES) == set(GRANTED)


def test_the_programs_of_the_page_run(server, token_with):
    # They are one program, whose check asks for the rotator's rights, too.
    program = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={
            "VAULT_ADDR": server.address,
            "VAULT_TOKEN": token_with("writer", "reader"),
            "HOME": str(server.folder),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "yes update transit/encrypt/orders" in done.stdout
    assert 'no  update transit/rewrap/orders path "transit/rewrap/orders"' in done.stdout


@pytest.mark.slow
def test_an_application_with_the_first_two_policies_can_be_initialised(server, token_with, tmp_path):
    environment = {
        "VAULT_ADDR": server.address,
        "VAULT_TOKEN": token_with("writer", "reader"),
        "EVENTSEAL_KMS_KEY": "vault-transit://transit/orders",
        "EVENTSEAL_STORE_URL": "sqlite:///shop.sqlite",
        "EVENTSEAL_APPLICATION": "shop",
        "HOME": str(tmp_path),
    }
    for arguments in (["--yes", "init"], ["verify"]):
        command = [Path(sys.executable).parent / "eventseal", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("policy", GRANTED)
def test_each_policy_grants_its_actions_and_is_refused_all_others(server, token_with, policy):
    context = "Y29udGV4dA=="
    transit = server.client().secrets.transit
    bodies = {
        "plaintext": {"plaintext": "AAAA", "context": context},
        "ciphertext": {
            "ciphertext": transit.encrypt_data("orders", "AAAA", context=context)["data"]["ciphertext"],
            "context": context,
        },
    }
    adapter = server.client(token=token_with(policy)).adapter
    allowed = set()
    for action, (method, path, body) in ACTIONS.items():
        sent = bodies[body] if isinstance(body, str) else body
        try:
            adapter.request(method, f"/v1/transit/{path}", json=sent)
        except hvac.exceptions.Forbidden:
            continue
        except hvac.exceptions.InvalidRequest:
            if action != "trim":  # which is allowed, and wrong while nothing is forbidden
                raise
        allowed.add(action)
    assert allowed == GRANTED[policy]


@pytest.mark.parametrize(
    ("uses", "policies"),
    [
        ({KmsUse.GENERATE}, ["writer"]),
        ({KmsUse.WRAP}, ["writer"]),
        ({KmsUse.UNWRAP}, ["reader"]),
        ({KmsUse.GENERATE, KmsUse.UNWRAP}, ["writer", "reader"]),
        ({KmsUse.REWRAP, KmsUse.DESCRIBE}, ["rewrapper"]),
        ({KmsUse.DESCRIBE, KmsUse.END, KmsUse.REWRAP}, ["custodian", "rotator"]),
        (set(KmsUse), ["roller"]),
    ],
)
def test_the_adapter_writes_the_lines_of_the_page(uses, policies):
    written = VaultTransitAdapter.policy("vault-transit://transit/orders", uses, "shop")
    lines = {line for name in policies for line in POLICIES[name].splitlines()}
    assert sorted(written.splitlines()) == sorted(lines)


def adapter_with(server, token):
    return VaultTransitAdapter("transit", "orders", client=server.client(token=token))


def context_of(purpose="data"):
    return EncryptionContext(uuid.uuid4(), purpose, "shop")


def test_writer_and_reader_are_an_application(server, token_with):
    adapter, context = adapter_with(server, token_with("writer", "reader")), context_of()
    key, wrapped = adapter.generate_data_key(context)
    assert adapter.unwrap(wrapped, context) == key
    assert isinstance(adapter.rewrap_many([(wrapped, context)])[0], KmsForbiddenError)


def test_a_writer_alone_opens_nothing_and_a_reader_alone_makes_nothing(server, token_with):
    writer, reader = (adapter_with(server, token_with(name)) for name in ("writer", "reader"))
    context = context_of()
    key, wrapped = writer.generate_data_key(context)
    with pytest.raises(KmsForbiddenError) as caught:
        writer.unwrap(wrapped, context)
    assert caught.value.remedy.endswith('path "transit/decrypt/orders" { capabilities = ["update"] }')
    assert reader.unwrap(wrapped, context) == key
    with pytest.raises(KmsForbiddenError):
        reader.wrap(key, context)


def test_a_rotator_rotates_and_rewraps_and_sees_no_key(server, token_with):
    application, rotator = (
        adapter_with(server, token_with(*names)) for names in (("writer", "reader"), ("rotator",))
    )
    context = context_of()
    key, wrapped = application.generate_data_key(context)
    version = rotator.rotate()
    moved = rotator.rewrap_many([(wrapped, context)])[0]
    assert moved.kek_version == version == rotator.current_version()
    assert application.unwrap(moved, context) == key
    for call in (
        lambda: rotator.unwrap(moved, context),
        lambda: rotator.wrap(KEY, context),
        lambda: rotator.forbid_versions_before("v1"),
        lambda: rotator.delete_versions_before("v1"),
    ):
        with pytest.raises(KmsForbiddenError):
            call()


def test_a_custodian_forbids_and_deletes(server, token_with):
    application, custodian = (
        adapter_with(server, token_with(*names))
        for names in (("writer", "reader", "rotator"), ("custodian",))
    )
    context = context_of()
    old = application.wrap(KEY, context)
    version = application.rotate()
    new = application.rewrap_many([(old, context)])[0]
    custodian.forbid_versions_before(version)
    custodian.delete_versions_before(version)
    assert application.unwrap(new, context) == KEY
    with pytest.raises(KmsForbiddenError):
        custodian.rotate()


def test_the_table_of_errors_names_every_class_of_the_adapters_own_table():
    named = set(re.findall(r"\| `(\w+Error)`", PAGE.read_text()))
    others = {"ConfigurationError", "KmsForbiddenError", "NotMyKeyError"}
    assert {row.error.__name__ for row in MEANINGS} | others == named
