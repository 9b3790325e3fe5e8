"""
Keys under the transit engine of HashiCorp Vault or OpenBao.

Needs hvac: ``pip install 'eventseal[vault]'``.
"""

from eventseal.errors import ConfigurationError

try:
    import hvac as _hvac  # noqa: F401  (only to say clearly that it is missing)
except ModuleNotFoundError:
    raise ConfigurationError(
        "the Vault adapter needs hvac, which is not installed: pip install 'eventseal[vault]'",
        remedy="Run: pip install 'eventseal[vault]'",
    ) from None

from eventseal_kms.vault.adapter import VaultTransitAdapter
from eventseal_kms.vault.calls import RetryPolicy
from eventseal_kms.vault.settings import (
    AppRole,
    InsecureVaultWarning,
    Kubernetes,
    Login,
    Token,
    TokenFile,
    VaultSettings,
)

__all__ = [
    "AppRole",
    "InsecureVaultWarning",
    "Kubernetes",
    "Login",
    "RetryPolicy",
    "Token",
    "TokenFile",
    "VaultSettings",
    "VaultTransitAdapter",
]
