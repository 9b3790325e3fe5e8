"""The example of a store under an AWS KMS key: run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eventseal_kms.testing import FakeAwsKms

EXAMPLE = Path(__file__).parents[2] / "examples" / "configure_aws_kms.py"


@pytest.fixture
def run(tmp_path):
    def run(*arguments, **variables):
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("EVENTSEAL_", "AWS_"))
        }
        command = [sys.executable, "-W", "error", str(EXAMPLE), *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=kept | variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert list(tmp_path.iterdir()) == []
        return done

    return run


@pytest.mark.slow
def test_without_an_account_it_runs_under_moto(run):
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "local://" in done.stdout
    assert "aws-kms://arn:aws:kms:eu-west-1:123456789012:key/" in done.stdout
    assert done.stdout.count("read      'Ada'") == 2
    assert "Lines changed: 1" in done.stdout
    assert "yes  kms:GenerateDataKey" in done.stdout


@pytest.mark.slow
def test_with_a_key_it_uses_the_callers_own_credentials(run):
    fake = FakeAwsKms()
    key = fake.create_key(alias="alias/shop")
    credentials = {name.upper(): value for name, value in fake.credentials().items()}
    with fake.serve() as url:
        done = run("--key", key, AWS_ENDPOINT_URL_KMS=url, **credentials)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'kms_key = "{key}"' in done.stdout
    named = fake.client().describe_key(KeyId=key)["KeyMetadata"]["Arn"]
    assert f"aws-kms://{named}" in done.stdout
    assert fake.count("kms:GenerateDataKey") > 0
