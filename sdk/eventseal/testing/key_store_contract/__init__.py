"""The tests that every key store must pass."""

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
    The tests that every key store must pass.

    Subclass it as ``Test...``, override the two fixtures with two handles on one database, and run pytest.
    Tests may share a database::

        class TestMyKeyStore(KeyStoreContract):
            @pytest.fixture
            def store(self, tmp_path):
                return MyKeyStore(tmp_path / "keys.db")

            @pytest.fixture
            def other_store(self, store, tmp_path):
                return MyKeyStore(tmp_path / "keys.db")

    To see the values of a failed assertion, register the suite in ``conftest.py``::

        pytest.register_assert_rewrite("eventseal.testing.key_store_contract")
    """


__all__ = ["KeyStoreContract"]
