"""Without the parts of POSIX, as on Windows: every import works, and features say what they need."""

import os
import subprocess
import sys
import textwrap

import pytest

HIDE = """
    import importlib, importlib.abc, os, pkgutil, signal, sys

    HIDDEN = {"fcntl", "grp", "pwd", "resource", "termios", "tty"}

    class Hide(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name in HIDDEN:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Hide())
    for name in HIDDEN:
        sys.modules.pop(name, None)
    for module, names in {
        os: "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK fchmod fork geteuid getuid pwrite register_at_fork",
        signal: "SIGALRM SIGHUP SIGKILL SIG_BLOCK SIG_SETMASK pthread_sigmask",
    }.items():
        for name in names.split():
            delattr(module, name)
"""
IMPORT = """
    import eventseal, eventseal_kms
    from eventseal import *

    modules = [
        module.name
        for root in (eventseal, eventseal_kms)
        for module in pkgutil.walk_packages(root.__path__, root.__name__ + ".", onerror=print)
        if not module.name.endswith("__main__")
    ]
    for name in modules:
        importlib.import_module(name)
    print(len(modules))
"""
USE = """
    from eventseal import EventSeal
    from eventseal.erasure import FileLedger
    from eventseal.cli.long_runs import worker_processes
    from eventseal.configuration.loading import write_settings_file
    from eventseal.errors import ConfigurationError
    from eventseal_kms.local import LocalKmsAdapter
    from pathlib import Path

    write_settings_file(Path("eventseal.toml"), {"application": "shop"})
    with EventSeal.from_settings(store_url="sqlite:///shop.sqlite", kms_key="vault-transit://t/k") as seal:
        print(seal.settings.application)
    for use in (
        lambda: FileLedger("erasures.jsonl"),
        lambda: LocalKmsAdapter.create("dev.key"),
        lambda: LocalKmsAdapter("dev.key"),
        lambda: worker_processes(2).__enter__(),
    ):
        try:
            use()
        except ConfigurationError as error:
            print(error, "->", error.remedy)
    print(os.listdir())
"""


@pytest.mark.slow
def test_everything_can_be_imported_and_what_needs_posix_says_so_when_it_is_used(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "".join(map(textwrap.dedent, (HIDE, IMPORT, USE)))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"VAULT_ADDR": "https://vault.example", "VAULT_TOKEN": "t"},
    )
    assert done.returncode == 0, done.stderr
    modules, application, *refusals, files = done.stdout.splitlines()
    assert int(modules) > 100
    assert application == "shop"
    assert [line.partition(" need")[0] for line in refusals] == [
        "a ledger in a file",
        "a key file",
        "a key file",
        "several worker processes",
    ]
    assert all("of POSIX, which this system does not have -> " in line for line in refusals)
    assert files == "['eventseal.toml']"
