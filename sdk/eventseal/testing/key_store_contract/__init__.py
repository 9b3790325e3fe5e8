"""What every key store must pass: subclass it, give it two handles on one database, and run pytest."""

from eventseal.testing.key_store_contract.keys import MakingContract, PagesContract, RacingContract
from eventseal.testing.key_store_contract.replacing import ChangesContract, LeasesContract, ReplacingContract
from eventseal.testing.key_store_contract.states import EndingContract, RevocationsContract, StatesContract
from eventseal.testing.key_store_contract.wrappings import RewrappingContract, WrappingContract


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
