"""
What a new process costs in CPU time before it works, beside importing the libraries that it needs.

The contenders take turns, each in its own process. The best of each counts, since a busy machine only adds.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fixtures.start_up import LIBRARIES, SQLITE_AND_AWS, SQLITE_AND_LOCAL, command, opening

from eventseal_kms.local import LocalKmsAdapter

pytestmark = pytest.mark.slow

ROUNDS = 20
OF_THE_COMMAND = "import typer, rich"
OF_A_STORE = f"import {', '.join(LIBRARIES)}"


def cpu_seconds(program: str) -> float:
    """Run a program in a new process, and give the CPU time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("title", "program", "yardstick", "most"),
    [
        ("EventSeal.from_settings()", opening(SQLITE_AND_LOCAL), OF_A_STORE, 1.25),
        ("EventSeal.from_settings() with AWS", opening(SQLITE_AND_AWS), f"{OF_A_STORE}, boto3", 1.25),
        ("eventseal --help", command("--help"), OF_THE_COMMAND, 2.5),
        ("eventseal --version", command("--version"), OF_THE_COMMAND, 1.5),
    ],
)
def test_what_a_start_costs(
    title, program, yardstick, most, request, benchmark, report_line, tmp_path, monkeypatch
):
    measured = request.config.getoption("benchmark_only")
    monkeypatch.chdir(tmp_path)
    LocalKmsAdapter.create(Path("dev.key"))
    cpu_seconds(program)  # compiles the files that were changed
    own, libraries = [], []

    def one_round():
        own.append(cpu_seconds(program))
        libraries.append(cpu_seconds(yardstick))

    benchmark.pedantic(one_round, rounds=ROUNDS if measured else 1)
    ratio = min(own) / min(libraries)
    benchmark.extra_info.update({"own": min(own), "libraries": min(libraries), "ratio": ratio})
    report_line(
        f"{title}: {min(own) * 1000:,.0f} ms of CPU time, {ratio:.2f} x the {min(libraries) * 1000:,.0f} ms "
        f"of `{yardstick}`"
    )
    assert not measured or ratio <= most
