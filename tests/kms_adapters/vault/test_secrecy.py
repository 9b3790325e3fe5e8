"""No key, token or secret id in what is raised, logged or shown, not even with the locals of every frame."""

import base64
import gc
import logging
import subprocess
import sys
import textwrap
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from eventseal.errors import EventSealError
from eventseal_kms.vault import AppRole, RetryPolicy, Token, VaultSettings, VaultTransitAdapter

CANARY = bytes(range(200, 232))
TOKEN = "s.CanaryTokenThatNobodyMayRead"
SECRET_ID = "canary-secret-id-that-nobody-may-read"
FORMS = {
    CANARY.hex(),
    base64.b64encode(CANARY).decode(),
    base64.urlsafe_b64encode(CANARY).decode(),
    repr(CANARY)[2:-1],
    repr(bytearray(CANARY))[12:-2],
    str(list(CANARY)),
    TOKEN,
    SECRET_ID,
}


def leaks(text):
    return [form for form in FORMS if form in text]


def shown(error):
    """All that an error tracker would keep of it."""
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(report.format()) + repr(error) + repr(error.__dict__)


@pytest.fixture
def failing(openbao, key_name, context, caplog, monkeypatch):
    """Calls that hold the canary, each failing in another way; give what was raised."""
    caplog.set_level(logging.DEBUG)
    quick = RetryPolicy(first_wait=0.001)
    good = VaultTransitAdapter("transit", key_name, client=openbao.client())
    wrapped = good.wrap(CANARY, context)
    denied = openbao.client().auth.token.create(policies=["default"])["auth"]["client_token"]
    edited = replace(wrapped, ciphertext=b"vault:v1:AAAA")

    def adapter(**options):
        settings = VaultSettings(**{"address": openbao.address} | options)
        return VaultTransitAdapter("transit", key_name, settings=settings, retries=quick)

    def raised(call):
        # The caller's own frames hold the key: what is asked here is what the adapter's hold.
        try:
            call()
        except EventSealError as error:
            while error.__traceback__ and error.__traceback__.tb_frame.f_code.co_filename == __file__:
                error.__traceback__ = error.__traceback__.tb_next
            return error
        pytest.fail("nothing was raised")

    def in_turn():
        for login in (Token(TOKEN), AppRole("role", SECRET_ID), Token(denied)):
            broken = adapter(login=login)
            yield raised(lambda broken=broken: broken.wrap(CANARY, context))
            yield raised(lambda broken=broken: broken.unwrap(wrapped, context))
        yield raised(lambda: good.unwrap(edited, context))
        # A whole batch came back with the key of the good item beside the error of the bad one.
        outcomes = good.unwrap_many([(wrapped, context), (edited, context)])
        assert outcomes[0] == CANARY
        yield outcomes[1]
        yield raised(lambda: good.wrap(CANARY + b"x", context))
        dead = adapter(address="http://127.0.0.1:1", login=Token(TOKEN))
        yield raised(lambda: dead.wrap(CANARY, context))
        real = requests.Session.send

        def cut(session, request, **options):
            if "/encrypt/" in request.url:
                raise requests.ConnectionError(f"cut while sending {request.url}")
            return real(session, request, **options)

        monkeypatch.setattr(requests.Session, "send", cut)
        yield raised(lambda: good.wrap(CANARY, context))
        yield raised(lambda: adapter(login=Token("root")).wrap(CANARY, context))
        monkeypatch.setattr("eventseal_kms.vault.adapter.os.urandom", lambda _: CANARY)
        yield raised(lambda: good.generate_data_key(context))
        monkeypatch.undo()

    return lambda: list(in_turn())


@pytest.mark.slow
def test_no_error_leads_to_a_secret(failing):
    errors = failing()
    assert len(errors) == 13
    for error in errors:
        assert leaks(shown(error)) == [], error
        assert error.__context__ is None
        assert error.__cause__ is None


@pytest.mark.slow
def test_nothing_is_logged_of_a_secret(failing, caplog):
    failing()
    assert "urllib3.connectionpool" in {record.name for record in caplog.records}
    assert leaks(caplog.text + repr([record.__dict__ for record in caplog.records])) == []


def test_no_object_of_the_adapter_shows_a_secret(openbao, key_name):
    settings = VaultSettings(address=openbao.address, login=AppRole("role", SECRET_ID))
    adapter = VaultTransitAdapter("transit", key_name, settings=settings)
    session = adapter._session
    process = session._process()
    process.client.token = TOKEN
    shown_objects = [adapter, session, process, settings, settings.login, Token(TOKEN), vars(adapter)]
    assert leaks(repr(shown_objects)) == []


def test_no_key_stays_behind_in_the_adapter(openbao, key_name, context):
    adapter = VaultTransitAdapter("transit", key_name, client=openbao.client())
    adapter.unwrap(adapter.wrap(CANARY, context), context)
    gc.collect()
    encoded = base64.b64encode(CANARY).decode()
    seen, queue = set(), [adapter]
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, type(sys)):
            continue
        seen.add(id(thing))
        assert thing != CANARY
        assert not (isinstance(thing, str) and encoded in thing)
        if not isinstance(thing, type) and not callable(thing):
            queue += gc.get_referents(thing)


def test_a_missing_hvac_is_said_with_the_command_that_installs_it():
    script = """
        import sys
        sys.modules["hvac"] = None
        try:
            import eventseal_kms.vault
        except Exception as error:
            print(type(error).__name__, error, error.remedy)
    """
    environment = {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment,
    )
    assert done.stdout.startswith("ConfigurationError")
    assert "pip install 'eventseal[vault]'" in done.stdout
