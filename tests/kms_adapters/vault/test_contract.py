"""The contract of every KMS adapter, over a real OpenBao."""

import uuid

import pytest

from eventseal.testing.kms_adapter_contract import (
    KmsAdapterContract,
    KmsBatchContract,
    KmsGenerationContract,
    KmsRewrapContract,
)
from eventseal_kms.vault import Token, VaultSettings, VaultTransitAdapter


class OverOpenBao(KmsAdapterContract, KmsBatchContract, KmsGenerationContract, KmsRewrapContract):
    @pytest.fixture
    def make_adapter(self, openbao, key_name):
        return lambda: self.adapter_of(openbao, key_name)

    @pytest.fixture
    def other_adapter(self, openbao):
        name = f"other-{uuid.uuid4().hex}"
        openbao.client().secrets.transit.create_key(name, derived=True)
        return self.adapter_of(openbao, name)

    @pytest.fixture
    def count_calls(self, openbao):
        return lambda: len(openbao.requests())

    @pytest.fixture
    def secrets(self, openbao):
        return [f"'{openbao.token}'", openbao.address]


class TestWithAReadyClient(OverOpenBao):
    @staticmethod
    def adapter_of(openbao, name):
        return VaultTransitAdapter("transit", name, client=openbao.client())


class TestWithSettings(OverOpenBao):
    @staticmethod
    def adapter_of(openbao, name):
        return VaultTransitAdapter(
            "transit", name, settings=VaultSettings(address=openbao.address, login=Token(openbao.token))
        )


class TestWithSmallBatches(OverOpenBao):
    @staticmethod
    def adapter_of(openbao, name):
        return VaultTransitAdapter("transit", name, client=openbao.client(), batch_size=3)
