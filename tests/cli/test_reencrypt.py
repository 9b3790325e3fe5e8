"""``eventseal reencrypt``: jobs that are seen, throttled, paused, interrupted and gone on with."""

from __future__ import annotations

import json
import multiprocessing
import os
import pty
import re
import select
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from eventseal.cli.long_runs import worker_processes
from eventseal.cli.migrate_command import said_of_run
from eventseal.cli.reencrypt_command import print_reencrypted
from eventseal.configuration import EventSeal
from eventseal.rotation import JobResult
from eventseal.rotation.jobs import passes

EXECUTABLE = Path(sys.executable).with_name("eventseal")
ITEMS = "integer_sequenced_items"
NO_JOB = "0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0b"
# Tests that run in the background hand down that interrupts are ignored.
HEEDING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def rotate(scope: str = "application") -> None:
    with EventSeal.from_settings() as seal:
        seal.keyring.rotate(scope)


@pytest.fixture
def old(store, query):
    """Two hundred items under a key that was rotated, which every process has noticed; gives its id."""
    key_id = store(200)[0].key_id
    rotate()
    query("UPDATE eventseal_key_changes SET refresh_interval = 0")
    return key_id


def under_keys(query):
    return dict(query(f"SELECT hex(key_id), count(*) FROM {ITEMS} GROUP BY key_id"))


@pytest.mark.slow
def test_every_item_moves_to_the_active_key(run_json, old, query):
    result = run_json("reencrypt")
    assert (result["verb"], result["complete"], result["done"], result["left"]) == ("reencrypt", True, 200, 0)
    assert result["by_key"] == {str(old): 200}
    assert old.hex.upper() not in under_keys(query)
    assert run_json("verify")["done"] == 200
    assert run_json("reencrypt")["done"] == 0


def test_people_are_told_in_columns(run, old):
    lines = run("reencrypt").stdout.splitlines()
    assert lines[0].split() == ["TABLE", "DONE"]
    assert [ITEMS, "200"] in [line.split() for line in lines]
    assert re.match(r"Re-encrypted 200 items in .* s. Failed: 0. Left: 0.", lines[-1])


def test_a_dry_run_counts_estimates_and_changes_nothing(run, run_json, old, query):
    would = run_json("reencrypt", "--dry-run", "--items-per-second", "2")
    assert (would["left"], would["done"], would["dry_run"]) == (200, 0, True)
    assert would["estimated_seconds"] == pytest.approx(100)
    shown = run("--dry-run", "reencrypt", "--items-per-second", "0.01").stdout
    assert "200 items would be re-encrypted, in about 5:33:20, estimated from a sample" in shown
    assert under_keys(query) == {old.hex.upper(): 200}
    assert run_json("status")["jobs"] == []


def test_until_every_process_has_noticed_it_says_to_run_it_again(run, run_json, store):
    store(3)
    rotate()
    result = run_json("reencrypt")
    assert (result["done"], result["complete"]) == (3, False)
    assert result["settles_at"].endswith("+00:00")
    assert "Run `eventseal reencrypt` again after that." in run("reencrypt").stdout


def test_a_row_that_does_not_open_is_named_and_exits_with_1(run, old, query):
    damaged = "CAST(substr(data, 1, length(data) - 1) || iif(substr(data, -1) = x'00', x'01', x'00') AS BLOB)"
    query(f"UPDATE {ITEMS} SET data = {damaged} WHERE position = 7")
    result = json.loads(run("reencrypt", "--json", exits=1).stdout)
    assert (result["done"], result["failed"]) == (199, 1)
    (failure,) = result["failures"]
    assert (failure["table"], failure["row"]["position"], failure["error"]) == (ITEMS, "7", "IntegrityError")
    shown = run("reencrypt", exits=1).stdout
    assert "position=7" in shown
    assert "remedy: " in shown


@pytest.mark.slow
@pytest.mark.parametrize("words", [["reencrypt"], ["reencrypt", "--dry-run"], ["rotate", "--reencrypt"]])
@pytest.mark.parametrize("always_encrypt", ["true", "false"])
def test_a_row_that_is_no_envelope_any_more_is_named_and_exits_with_1(
    run, run_json, store, query, monkeypatch, always_encrypt, words
):
    store(4)
    monkeypatch.setenv("EVENTSEAL_ALWAYS_ENCRYPT", always_encrypt)
    query(f"UPDATE {ITEMS} SET data = CAST(data AS TEXT) WHERE position = 0")
    query(f"UPDATE {ITEMS} SET data = X'' WHERE position = 1")
    query(f"UPDATE {ITEMS} SET data = CAST(X'FF' || substr(data, 2) AS BLOB) WHERE position = 2")
    result = run_json(*words, exits=1)
    result = result.get("reencrypt", result)
    assert (result["failed"], result["by_table"][ITEMS]["plain"]) == (3, 0)
    assert [failure["row"]["position"] for failure in result["failures"]] == ["0", "1", "2"]
    shown = run(*words, exits=1).stdout
    assert all(f"position={number}" in shown for number in range(3))
    assert "remedy: " in shown


@pytest.mark.slow
def test_items_that_are_left_make_the_exit_code_1(run, run_json, old, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(passes, "MOST_PASSES", 0)  # as if keys were rotated again and again
        shown = run("reencrypt", exits=1).stdout
        assert "Left: 200." in shown
        assert "Not complete. To continue: eventseal reencrypt --resume" in shown
    assert run_json("reencrypt")["left"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["2"])
def test_processes_share_the_work_and_need_nothing_but_the_settings_file(run_json, old, processes):
    Path("eventseal.toml").rename("other.toml")
    result = run_json("reencrypt", "--config", "other.toml", "--workers", processes, "--batch", "10")
    assert (result["done"], result["left"], result["failed"]) == (200, 0, 0)


def test_an_unknown_key_or_table_names_the_nearest_and_begins_nothing(run, run_json, old):
    typo = str(old)[:-1] + ("0" if str(old)[-1] != "0" else "1")
    assert f"Did you mean {old}?" in run("reencrypt", "--key", typo, exits=2).stderr
    assert f"Did you mean {old}?" in run("reencrypt", "--key", str(old)[:-2], exits=2).stderr
    assert f"Did you mean {ITEMS}?" in run("reencrypt", "--table", "integer_items", exits=2).stderr
    assert run_json("status")["jobs"] == []


def test_an_unregistered_table_with_a_key_id_stops_it(run, old, query):
    query("CREATE TABLE strangers (key_id BLOB, data BLOB)")
    shown = run("reencrypt", exits=2).stderr
    assert "strangers" in shown
    assert "unsealed_tables" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", NO_JOB, "--pause", NO_JOB],
        ["--resume", NO_JOB, "--table", ITEMS],
        ["--pause", NO_JOB, "--dry-run"],
        ["--workers", "0"],
        ["--batch", "0"],
        ["--items-per-second", "0"],
        ["--items-per-second", "nan"],
        ["--resume", "no-job"],
    ],
    ids=" ".join,
)
def test_words_that_say_nothing_are_wrong_use(run, run_json, old, words):
    run("reencrypt", *words, exits=2)
    assert run_json("status")["jobs"] == []


@pytest.mark.parametrize("option", ["--resume", "--pause"])
def test_a_job_that_is_not_there_is_refused(run, old, option):
    assert "there is no job" in run("reencrypt", option, str(uuid4()), exits=4).stderr


def start(*words: str, stderr=subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEEDING, EXECUTABLE, "reencrypt", "--batch", "10", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)


@pytest.fixture
def slow(query):
    """Starts a run that stands still after a tenth or two, until it is stopped."""

    def start_slow(*words: str) -> subprocess.Popen[str]:
        running = start("--items-per-second", "20", *words)
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("reencrypt: "):
                query("UPDATE eventseal_reencryption_jobs SET paced_until = paced_until + 3600")
                return running
        raise AssertionError(f"it ended with {running.wait()}")

    return start_slow


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_it_exits_with_130_and_says_how_to_go_on(run_json, old, query, slow, sent, processes):
    running = slow("--workers", processes, "--json")
    running.send_signal(sent)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    partly = json.loads(out)
    assert (partly["complete"], partly["verb"]) == (False, "reencrypt")
    assert f"To continue: eventseal reencrypt --resume {partly['job_id']}" in err
    assert "Traceback" not in err
    (job,) = run_json("status")["jobs"]
    assert 0 < job["done"] < 200
    done = run_json("reencrypt", "--resume", partly["job_id"], "--items-per-second", "1000000")
    assert (done["complete"], done["left"]) == (True, 0)
    assert done["job_id"] == partly["job_id"]
    assert old.hex.upper() not in under_keys(query)
    assert run_json("verify")["done"] == 200


@pytest.mark.slow
def test_an_interrupt_while_workers_start_is_the_commands_alone(old):
    options = ["--workers", "2", "--items-per-second", "1"]  # so that it does not end first
    words = [sys.executable, "-c", HEEDING, str(EXECUTABLE), "reencrypt", *options]
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not any(map(is_python_by_now, children_of(running.pid))):
        assert running.poll() is None
        select.select([], [], [], 0.005)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_no_worker_heeds_the_terminals_interrupt():
    with worker_processes(4) as executor:
        assert executor is not None
        # Where the executor started them one by one, with the work, those would come later.
        before = {child.pid for child in multiprocessing.active_children()}
        assert len(before) == 4
        assert len(set(executor.map(blocks_interrupts, range(40)))) == 1
        assert {child.pid for child in multiprocessing.active_children()} == before
        for pid in before:
            blocked = re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
            assert blocked is not None
            assert int(blocked[1], 16) & 1 << (signal.SIGINT - 1)


def blocks_interrupts(_number: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def children_of(pid: int) -> list[Path]:
    return [Path("/proc", child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_python_by_now(process: Path) -> bool:
    """Whether a worker would turn an interrupt into an exception."""
    caught = re.search(r"SigCgt:\s*(\w+)", (process / "status").read_text())
    heeds = caught is not None and int(caught[1], 16) & 1 << (signal.SIGINT - 1)
    return bool(heeds) and "spawn_main" in (process / "cmdline").read_text()


@pytest.mark.slow
def test_killed_its_workers_end_with_it_and_the_next_run_goes_on(run_json, old, slow):
    running = slow("--workers", "2")
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert len(children) >= 2
    running.kill()
    running.communicate(timeout=120)
    for child in children:
        while (
            Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]
        ):
            select.select([], [], [], 0.05)
    assert run_json("reencrypt", "--items-per-second", "1000000")["left"] == 0
    assert run_json("verify")["done"] == 200


@pytest.mark.slow
def test_a_job_is_paused_from_elsewhere_and_resumed(run, run_json, old, slow):
    running = slow("--json")
    (job,) = run_json("status")["jobs"]
    assert job["state"] == "running"
    paused = run_json("reencrypt", "--pause", job["job_id"])
    assert paused["state"] == "paused"
    out, err = running.communicate(timeout=120)
    assert running.returncode == 1, err
    assert json.loads(out)["complete"] is False
    steps = run_json("status")["next"]
    assert steps[0]["command"] == f"eventseal reencrypt --resume {job['job_id']}"
    assert "a re-encryption is paused" in run("doctor", exits=1).stdout
    assert run_json("reencrypt", "--resume", job["job_id"], "--items-per-second", "1000000")["left"] == 0
    assert "jobs" not in {f["area"] for f in run_json("doctor", exits=1)["findings"] if f["remedy"]}


@pytest.mark.slow
def test_a_resumed_job_whose_target_was_rotated_meanwhile_goes_to_the_newest_key(run_json, old, query, slow):
    running = slow("--json")
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=120)
    rotate()
    result = run_json("reencrypt", "--resume", json.loads(out)["job_id"], "--items-per-second", "1000000")
    assert result["left"] == 0
    assert len(under_keys(query)) == 1
    assert run_json("keys", "--state", "active", "--scope", "application")["keys"][0]["items"] == 200


@pytest.mark.slow
def test_a_job_of_another_release_is_refused_with_what_to_do(run, run_json, old, query, slow):
    running = slow()
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=120)
    (job,) = run_json("status")["jobs"]
    query("UPDATE eventseal_reencryption_jobs SET layout = 99, release = '99.0'")
    shown = run("reencrypt", "--resume", job["job_id"], exits=4).stderr
    assert "release 99.0" in shown
    assert run_json("reencrypt")["left"] == 0


@pytest.mark.slow
def test_on_a_terminal_progress_is_a_bar_with_rate_and_time_left(old):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [EXECUTABLE, "reencrypt", "--batch", "10", "--items-per-second", "100"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # Linux says so at the end of a terminal
            break
    out, _ = running.communicate(timeout=120)
    os.close(ours)
    assert running.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"reencrypt .* \d+/200 +\d+/s +0:00:0\d left", text)
    assert set(re.findall(r"\d+/(\d+)", text)) == {"200"}
    assert "Re-encrypted 200 items" in out


WITH_LITTLE_ROOM = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.slow
def test_where_no_file_can_grow_any_more_it_is_told_and_the_job_goes_on_when_there_is_room(run_json, old):
    room = str(Path("shop.sqlite").stat().st_size + 65_536)
    command = [sys.executable, "-c", WITH_LITTLE_ROOM, room, EXECUTABLE, "reencrypt", "--batch", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "SQLite says" in done.stderr
    assert "Traceback" not in done.stderr
    (job,) = run_json("status")["jobs"]
    assert 0 < job["done"] < 200
    assert run_json("reencrypt")["left"] == 0
    assert run_json("verify")["done"] == 200


@pytest.mark.parametrize("job_id", [None, UUID(NO_JOB)])
def test_where_items_are_left_the_command_that_continues_is_shown(job_id, capsys):
    """Also if keys settle meanwhile; a job that another run has finished is not named."""
    result = JobResult(
        verb="x", complete=False, done=0, left=5, failed=0, seconds=1.0, job_id=job_id,
        settles_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    print_reencrypted(result, dry_run=False)
    said = [capsys.readouterr().out, said_of_run(result, dry_run=False)]
    resumed = "" if job_id is None else f" --resume {job_id}"
    assert [text.splitlines()[-1] for text in said] == [
        f"Not complete. To continue: eventseal {verb}{resumed}" for verb in ("reencrypt", "migrate")
    ]
