"""What is said of a SQLite file that cannot be opened, and that nothing is left of the attempt."""

import os
import shlex
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from eventseal.configuration.initialise import initialise
from eventseal.errors import ConfigurationError, StoreUnavailableError
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemySettings
from eventseal.storage.database.faults import translated


def connect(url, **options):
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(url), **options)
    try:
        with translated("opening"), datastore.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    finally:
        datastore.close()


def refusal(url, **options):
    with pytest.raises(ConfigurationError) as caught:
        connect(url, **options)
    return caught.value


@contextmanager
def other_user():
    """A user who is not root, if the tests run as root."""
    was = os.geteuid()
    os.seteuid(65534 if was == 0 else was)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.mark.parametrize("reads_only", [False, True])
def test_a_missing_folder_is_a_wrong_setting_and_the_remedy_creates_it(tmp_path, reads_only):
    folder = tmp_path / "it's here" / "data"
    url = f"sqlite:///{folder}/shop.sqlite"
    error = refusal(url, reads_only=reads_only)
    assert f"there is no folder {folder}" in str(error)
    assert not folder.parent.exists()
    command = error.remedy[error.remedy.index("mkdir") :]
    assert shlex.split(command) == ["mkdir", "-p", str(folder)]
    subprocess.run(["sh", "-c", command], check=True)
    connect(url)


def test_a_folder_or_a_path_through_a_file_is_a_wrong_setting(tmp_path):
    (tmp_path / "file").write_text("")
    assert "the path is a folder" in str(refusal(f"sqlite:///{tmp_path}"))
    assert f"{tmp_path}/file is not a folder" in str(refusal(f"sqlite:///{tmp_path}/file/shop.sqlite"))


def test_missing_rights_are_a_wrong_setting():
    with tempfile.TemporaryDirectory() as folder:  # not in tmp_path, whose parents only root may enter
        Path(folder).chmod(0o555)
        with other_user():
            error = refusal(f"sqlite:///{folder}/shop.sqlite")
    assert f"this user has no access to {folder}" in str(error)


def test_a_folder_that_disappears_later_is_an_outage(tmp_path):
    folder = tmp_path / "volume"
    folder.mkdir()
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(f"sqlite:///{folder}/shop.sqlite"))
    with translated("opening"), datastore.engine.connect():
        pass
    datastore.engine.dispose()
    folder.rename(tmp_path / "unmounted")
    with (
        pytest.raises(StoreUnavailableError, match="unable to open"),
        translated("opening"),
        datastore.engine.connect(),
    ):
        pass
    datastore.close()


def test_the_reason_is_given_again_until_the_file_was_opened(tmp_path):
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(f"sqlite:///{tmp_path}/data/shop.sqlite"))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="there is no folder"), datastore.engine.connect():
            pass
    datastore.close()


@pytest.mark.parametrize(
    ("wrong", "value"),
    [
        ("store_url", "sqlite:///data/shop.sqlite"),
        ("key_store_url", "sqlite:///data/shop.sqlite"),
        ("ledger", "data/erasures.jsonl"),
        ("ledger", "sqlite:///data/erasures.sqlite"),
    ],
)
def test_init_leaves_nothing_if_a_folder_is_missing(tmp_path, monkeypatch, wrong, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "sqlite:///shop.sqlite")
    monkeypatch.setenv(f"EVENTSEAL_{wrong.upper()}", value)
    with pytest.raises(ConfigurationError) as caught:
        initialise()
    assert caught.value.remedy.endswith("mkdir -p data")
    assert list(tmp_path.iterdir()) == []
