"""What every key store must pass: subclass it, give it two handles on one database, and run pytest."""

from eventseal.testing.key_store_contract.changes import ChangesContract
from eventseal.testing.key_store_contract.ending import EndingContract
from eventseal.testing.key_store_contract.leases import LeasesContract
from eventseal.testing.key_store_contract.making import MakingContract
from eventseal.testing.key_store_contract.pages import PagesContract
from eventseal.testing.key_store_contract.racing import RacingContract
from eventseal.testing.key_store_contract.replacing import ReplacingContract
from eventseal.testing.key_store_contract.revocations import RevocationsContract
from eventseal.testing.key_store_contract.rewrapping import RewrappingContract
from eventseal.testing.key_store_contract.states import StatesContract
from eventseal.testing.key_store_contract.wrapping import WrappingContract


class KeyStoreContract(
    MakingContract,
    RacingContract,
    ReplacingContract,
    StatesContract,
    EndingContract,
    LeasesContract,
    ChangesContract,
    RevocationsContract,
    PagesContract,
    WrappingContract,
    RewrappingContract,
):
    """
    The suite. A subclass named ``Test...`` overrides the two fixtures; databases may be shared by tests.

    ::

        class TestMyKeyStore(KeyStoreContract):
            @pytest.fixture
            def store(self, tmp_path):
                return MyKeyStore(tmp_path / "keys.db")

            @pytest.fixture
            def other_store(self, store, tmp_path):
                return MyKeyStore(tmp_path / "keys.db")

    A failed assertion shows its values if ``conftest.py`` asks pytest for it::

        pytest.register_assert_rewrite("eventseal.testing.key_store_contract")
    """


__all__ = ["KeyStoreContract"]
