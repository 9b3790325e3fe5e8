"""The adapters' contract over the local adapter and over the SDK's own fake."""

import pytest

from eventseal.testing import FakeBatchKms, FakeKms
from eventseal.testing.kms_adapter_contract import KmsAdapterContract, KmsBatchContract
from eventseal_kms.local import LocalKmsAdapter


@pytest.mark.filterwarnings("ignore::eventseal_kms.local.DevelopmentKeyWarning")
class TestLocal(KmsAdapterContract, KmsBatchContract):
    @pytest.fixture
    def make_adapter(self, tmp_path):
        LocalKmsAdapter.create(tmp_path / "kek.key")
        return lambda: LocalKmsAdapter(tmp_path / "kek.key")

    @pytest.fixture
    def other_adapter(self, tmp_path):
        return LocalKmsAdapter.create(tmp_path / "other.key")

    @pytest.fixture
    def secrets(self, make_adapter, tmp_path):
        return [(tmp_path / "kek.key").read_text().strip()]

    @pytest.fixture
    def count_calls(self):
        return lambda: 0


class FakeContract(KmsAdapterContract):
    fake = FakeKms

    @pytest.fixture
    def kms(self):
        return self.fake("contract")

    @pytest.fixture
    def make_adapter(self, kms):
        """The KEK lives in the object: there is no second one of it."""
        return lambda: kms

    @pytest.fixture
    def other_adapter(self):
        return self.fake("other")

    @pytest.fixture
    def count_calls(self, kms):
        return lambda: len(kms.calls)


class TestFakeKms(FakeContract):
    pass


class TestFakeBatchKms(FakeContract, KmsBatchContract):
    fake = FakeBatchKms
