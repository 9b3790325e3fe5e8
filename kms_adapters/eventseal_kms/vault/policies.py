"""Policy statements, written out for whoever has to add them."""

from __future__ import annotations

_CAPABILITY = {"get": "read", "post": "update"}


def capability_for(method: str) -> str:
    """Name the capability that Vault asks of a call: ``read`` or ``update``."""
    return _CAPABILITY[method]


def policy_line(path: str, capability: str) -> str:
    """Write the HCL statement that grants *capability* on *path*."""
    return f'path "{path}" {{ capabilities = ["{capability}"] }}'
