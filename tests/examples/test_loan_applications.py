"""The demo: run as a user runs it."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "loan_applications.py"
SAMPLE = EXAMPLE.parent / "data" / "loan-events-sample.jsonl.gz"


def run(folder, *arguments):
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def write_log(folder, count):
    log = folder / "log.jsonl"
    with gzip.open(SAMPLE, "rt") as sample:
        log.write_text("".join(line for line, _ in zip(sample, range(count), strict=False)))
    return str(log)


@pytest.mark.slow
def test_the_log_replays_and_nothing_of_it_is_stored_in_plain(tmp_path):
    done = run(tmp_path, "--events", write_log(tmp_path, 400))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every event came back equal to the log's 400" in done.stdout
    assert "Proved:" in done.stdout
    assert "3 KMS calls made by the writer" in done.stdout  # the store key, and a data key before and after
    stored = (tmp_path / "demo-output" / "loans.sqlite").read_bytes()
    twin = (tmp_path / "demo-output" / "plaintext-twin.sqlite").read_bytes()
    assert b"A_SUBMITTED" in twin
    assert b"A_SUBMITTED" not in stored


@pytest.mark.slow
def test_run_again_it_starts_afresh(tmp_path):
    log = write_log(tmp_path, 60)
    for _ in range(2):
        done = run(tmp_path, "--events", log)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_database_of_the_users_own_is_still_readable_and_counted_apart_when_run_again(tmp_path):
    log = write_log(tmp_path, 60)
    for _ in range(2):
        done = run(tmp_path, "--events", log, "--store", f"sqlite:///{tmp_path}/own.sqlite")
        assert done.returncode == 0, done.stdout + done.stderr
        counts = [line.split()[0] for line in done.stdout.splitlines() if " items under key " in line]
        assert 60 <= sum(map(int, counts)) < 90  # the lines, and the applications' creations


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", '{"a": 1}\n', "no JSON\n", "[1]\n", "\udcff"])
def test_a_log_that_is_none_is_told_and_nothing_is_written(tmp_path, content):
    (tmp_path / "odd.jsonl").write_text(content, errors="surrogateescape")
    done = run(tmp_path, "--events", "odd.jsonl")
    assert (done.returncode, done.stderr) == (2, "")
    assert "odd.jsonl: " in done.stdout
    assert not (tmp_path / "demo-output" / "loans.sqlite").exists()


@pytest.mark.slow
def test_a_database_in_memory_is_told_with_a_remedy(tmp_path):
    done = run(tmp_path, "--events", write_log(tmp_path, 60), "--store", "sqlite://")
    assert done.returncode == 1
    assert "in memory" in done.stdout


@pytest.mark.slow
def test_a_missing_log_is_told(tmp_path):
    done = run(tmp_path, "--events", "nowhere.jsonl")
    assert done.returncode == 2
    assert "nowhere.jsonl" in done.stdout


@pytest.mark.slow
def test_a_kek_that_is_none_is_told_with_a_remedy(tmp_path):
    done = run(tmp_path, "--kms", "nonsense")
    assert done.returncode == 1
    assert "remedy" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_sample_is_a_whole_log_of_the_promised_size():
    with gzip.open(SAMPLE, "rt") as sample:
        events = [json.loads(line) for line in sample]
    assert 2000 <= len(events) <= 5000
    positions = {}
    for event in events:
        assert event["position"] == positions.get(event["application_id"], -1) + 1
        positions[event["application_id"]] = event["position"]
