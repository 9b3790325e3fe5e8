"""The connections under a client, and what becomes of them in the child of a fork."""

from __future__ import annotations

from typing import TYPE_CHECKING

import requests
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar

if TYPE_CHECKING:
    import hvac

CONNECTIONS = 20
"""How many connections are kept open: as many as a keyring has calls in flight."""


def make_session(verify: bool | str) -> requests.Session:
    """
    Make a session.

    Args:
        verify: Whether the server's certificate is verified, or by which file or folder of CAs; hvac goes by
            the session's, and not by what it is told itself.
    """
    session = requests.Session()
    session.verify = verify
    for prefix in ("https://", "http://"):
        session.mount(prefix, HTTPAdapter(pool_maxsize=CONNECTIONS))
    return session


def detach(client: hvac.Client) -> list[object]:
    """
    Give a client, in the child of a fork, connections of its own.

    The inherited ones are not closed: a thread of the parent may have held their locks at the fork, and
    nobody in the child will ever release them.

    Returns:
        What was inherited. Keep it: its finalisers take those locks, too.
    """
    inherited: list[object] = [client.session.cookies]
    if isinstance(client.session.cookies, RequestsCookieJar):
        client.session.cookies = client.session.cookies.copy()
    for transport in client.session.adapters.values():
        if isinstance(transport, HTTPAdapter):
            inherited += [transport.poolmanager, transport.proxy_manager]
            # What unpickling does: the settings stay, the pools are new.
            transport.__setstate__(transport.__getstate__())
    return inherited
