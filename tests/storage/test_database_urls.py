"""URLs of databases: which are refused, with which remedy, and that no message shows a part of a password."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import traceback
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eventseal.configuration import EventSeal, Settings
from eventseal.configuration.assembly import old_database
from eventseal.errors import ConfigurationError
from eventseal.storage import SQLAlchemySettings
from eventseal.storage.database.engines import redacted
from eventseal.testing import FakeKms

LETTERS = "ÄÖÜßäöü"
"""Letters that no message of ours has."""
PASSWORDS = st.text(f"{LETTERS}@/:#?%[]&=+;,. 47", min_size=4, max_size=20)
MISREAD = "postgresql://u:p@SS/WORD@127.0.0.1/x"
RUN = 4
"""Characters in a row that give a password away."""


def refusal(uri):
    with pytest.raises(ConfigurationError) as refused:
        SQLAlchemySettings(uri)
    return refused.value


def runs(password):
    """What must not be shown: every run that has a letter of the password's own."""
    found = {password[start : start + RUN] for start in range(len(password) - RUN + 1)}
    return [run for run in found if set(run) & set(LETTERS)]


@given(PASSWORDS)
@example("p@SSWÖRD")
@example("p@SS/WÖRD")
@example("p@SS:WÖRD")
@example("p@SS?WÖRD=x")
@example("4@SS:4/WÖRD")
@example("p/ÖÖÖÖ?ÄÄÄÄ")
@example("%C3%28ÖÖÖ")
def test_no_part_of_a_password_that_is_not_encoded_is_shown(password):
    for uri in (
        f"postgresql://eve:{password}@db.example/shop",
        f"postgresql://eve:{password}@/shop?host=/run",
        f"postgresql://{password}@db.example:5432/shop",
        f"postgresql://db.example:5432/shop?user=eve&password={password}",
        f"postgresql://db.example/shop?password={password}",
    ):
        try:
            settings = SQLAlchemySettings(uri)
        except ConfigurationError as error:
            shown = f"{error} {error!r} {error.remedy} {''.join(traceback.format_exception(error))}"
        else:
            shown = f"{settings} {settings!r} {redacted(settings.url)}"
        assert [run for run in runs(password) if run in shown] == []


@given(PASSWORDS)
def test_an_encoded_password_is_read_as_it_is(password):
    url = SQLAlchemySettings(f"postgresql://eve:{quote(password, safe='')}@db.example:5432/shop").url
    assert (url.password, url.host, url.port, url.database) == (password, "db.example", 5432, "shop")


@pytest.mark.parametrize(
    "uri",
    [
        MISREAD,
        "postgresql://eve:p@SSWORD@127.0.0.1/x",
        "postgresql://eve:pa/ssword@127.0.0.1/x",
        "postgresql://eve:pa?ssword@127.0.0.1/x",
        "postgresql://eve:pa#ssword@127.0.0.1/x",
        "postgresql://eve:p@ss?wo=rd@127.0.0.1/x",
        "postgresql://eve:p@ss:word@127.0.0.1/x",
        "postgresql://eve:100%sure@127.0.0.1/x",
        "postgresql://eve:%FFsure@127.0.0.1/x",
        "postgresql://eve@tenant:password@127.0.0.1/x",
        "postgresql://127.0.0.1:5432/x?password=p@ssword",
    ],
)
def test_a_password_that_is_not_encoded_is_a_wrong_setting(uri):
    refused = refusal(uri)
    assert "cannot be read" in str(refused)
    assert "Percent-encode" in refused.remedy


def test_the_command_of_the_remedy_encodes_a_password():
    command = shlex.split(re.search(r"run `(python .*)`", refusal(MISREAD).remedy)[1])
    code = command[2].replace("getpass()", repr("p@SS/W ÖRD"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "p%40SS%2FW%20%C3%96RD\n"


@pytest.mark.parametrize(
    ("uri", "host", "port"),
    [
        ("postgresql://eve@one.example,two.example/shop", "one.example,two.example", None),
        ("postgresql://eve:a:b@[fe80::1%25]:5433/shop", "fe80::1%25", 5433),
        ("postgresql:///shop?host=/run/postgresql&user=eve", None, None),
        ("postgres://db_1/shop?sslmode=require&options=-csearch_path%3Dx", "db_1", None),
    ],
)
def test_usual_urls_are_read(uri, host, port):
    url = SQLAlchemySettings(uri).url
    assert (url.host, url.port, url.database) == (host, port, "shop")


def test_a_sqlite_file_may_have_any_name_and_no_host():
    assert str(SQLAlchemySettings("sqlite:////srv/a@b:c/x#1.sqlite").file) == "/srv/a@b:c/x#1.sqlite"
    refused = refusal("sqlite://shop.sqlite")
    assert "sqlite:///<file>" in refused.remedy


@pytest.mark.parametrize(
    ("scheme", "right"),
    [
        ("postgresql+asyncpg", "postgresql+psycopg"),
        ("postgres+asyncpg", "postgresql+psycopg"),
        ("postgresql+psycopg_async", "postgresql+psycopg"),
        ("postgresql+psycopg2", "postgresql+psycopg"),
        ("postgresql+psycopg2cffi", "postgresql+psycopg"),
        ("postgresql+pg8000", "postgresql+psycopg"),
        ("sqlite+aiosqlite", "sqlite"),
        ("sqlite+pysqlcipher", "sqlite"),
    ],
)
def test_a_driver_that_the_store_cannot_use_is_refused_with_the_right_url(scheme, right):
    refused = refusal(f"{scheme}://eve:hunter2@db.example/shop")
    assert scheme.partition("+")[2] in str(refused)
    assert refused.remedy == f"Write {right}:// instead of {scheme}://."


@pytest.mark.parametrize(
    "uri", ["sqlite:///x", "sqlite+pysqlite:///x", "postgresql://h/d", "postgresql+psycopg://h/d"]
)
def test_drivers_of_the_calling_thread_are_used(uri):
    assert SQLAlchemySettings(uri).url.get_backend_name() == uri.partition(":")[0].partition("+")[0]


@pytest.mark.parametrize(
    "scheme",
    ["mysql", "mysql+pymysql", "mysql+mysqldb", "mysql+aiomysql", "mariadb", "mariadb+mariadbconnector"],
)
def test_mysql_and_mariadb_are_refused_whatever_is_installed(scheme):
    refused = refusal(f"{scheme}://eve:hunter2@db.example/shop")
    assert "only SQLite and PostgreSQL" in str(refused)
    assert "decision record on MySQL and MariaDB" in refused.remedy
    assert "hunter2" not in f"{refused} {refused.remedy}"


def test_every_setting_with_a_url_refuses_it_by_its_name():
    fine = "sqlite:///x.sqlite"
    for setting, rest in {
        "store_url": {},
        "key_store_url": {"store_url": fine},
        "ledger": {"store_url": fine},
    }.items():
        with pytest.raises(ConfigurationError, match=f"^{setting}: .*cannot be read") as refused:
            EventSeal(Settings(**{setting: MISREAD}, **rest), kms=FakeKms())
        frames = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
        assert "WORD@" not in "".join(frames.format())
    with pytest.raises(ConfigurationError, match=r"^old_store_url: "):
        old_database(Settings(old_store_url=MISREAD, store_url=fine))
    with pytest.raises(ConfigurationError, match=r"^store_url: "):  # the ledger is compared with the stores
        EventSeal(Settings(store_url=f"{MISREAD}:port", ledger=fine), kms=FakeKms())


def test_the_pooler_is_that_of_every_database():
    urls = {f"{name}url": f"postgresql://db/{name}" for name in ("store_", "key_store_", "old_store_")}
    settings = Settings(pooler="transaction", **urls)
    with EventSeal(settings, kms=FakeKms()) as seal:
        poolers = [each.pooler for each in (seal.datastore.settings, seal.datastore.key_settings)]
    assert [*poolers, old_database(settings).pooler] == ["transaction"] * 3
