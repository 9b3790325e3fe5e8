"""The page docs/aws-kms.md does what it says: its policies, its programs, its example of a test."""

import json
import re
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from eventseal.errors import KmsForbiddenError
from eventseal.kms import EncryptionContext, KmsUse
from eventseal_kms.aws import AwsKmsAdapter

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "aws-kms.md").read_text()
KEY_IN_PAGE = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
POLICIES = dict(re.findall(r"<!-- policy: (\w+) -->\n```json\n(.*?)```", PAGE, re.DOTALL))
ADMINISTRATION = {
    "disable_key": {},
    "schedule_key_deletion": {},
    "put_key_policy": {"Policy": "{}"},
    "rotate_key_on_demand": {},
    "describe_key": {},
}


@pytest.fixture
def role(kms, key):
    """Make a role with a policy of the page, on the fake's key."""

    def role(name):
        caller = f"arn:aws:iam::111122223333:role/{name}"
        kms.attach_policy(caller, POLICIES[name].replace(KEY_IN_PAGE, key))
        return caller

    return role


@pytest.fixture
def item(adapter, context):
    return adapter.generate_data_key(context)[1], context


def succeeds(work):
    """Whether it works; the only other way to end is a refusal."""
    try:
        outcome = work()
    except KmsForbiddenError:
        return False
    outcome = outcome[0] if isinstance(outcome, list) else outcome
    assert not isinstance(outcome, Exception) or isinstance(outcome, KmsForbiddenError)
    return not isinstance(outcome, Exception)


@pytest.mark.parametrize(
    ("name", "granted", "administers"),
    [
        ("writer", {"make", "open"}, set()),
        ("reader", {"open"}, set()),
        ("rotator", {"move"}, {"rotate_key_on_demand", "describe_key"}),
        ("rewrapper", {"move"}, {"describe_key"}),
    ],
)
def test_each_role_can_do_its_work_and_nothing_else(kms, key, role, item, name, granted, administers):
    caller = role(name)
    client = kms.client(caller)
    wrapped, context = item
    own = AwsKmsAdapter(key, client=client)
    verbs = {
        "make": lambda: own.generate_data_key(context),
        "open": lambda: own.unwrap(wrapped, context),
        "wrap": lambda: own.wrap(bytes(32), context),
        "move": lambda: own.rewrap_many([(wrapped, context)]),
    }
    assert {verb for verb, work in verbs.items() if succeeds(work)} == granted
    for operation, parameters in ADMINISTRATION.items():
        if operation in administers:
            assert getattr(client, operation)(KeyId=key, **parameters)
        else:
            with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
                getattr(client, operation)(KeyId=key, **parameters)


@pytest.mark.parametrize("name", ["writer", "reader", "rotator", "rewrapper"])
def test_no_role_reaches_another_application_or_another_key(kms, key, adapter, role, name):
    client = kms.client(role(name))
    elsewhere = EncryptionContext(uuid4(), "data", "bank")
    here = EncryptionContext(uuid4(), "data", "shop")
    for arn, context in ((key, elsewhere), (kms.create_key(), here)):
        _, wrapped = AwsKmsAdapter(arn, client=kms.client()).generate_data_key(context)
        own = AwsKmsAdapter(arn, client=client)
        assert not succeeds(lambda own=own, context=context: own.generate_data_key(context))
        assert not succeeds(lambda own=own, wrapped=wrapped, context=context: own.unwrap(wrapped, context))
        assert not succeeds(
            lambda own=own, wrapped=wrapped, context=context: own.rewrap_many([(wrapped, context)])
        )


@pytest.mark.parametrize(
    ("name", "uses"),
    [
        ("writer", {KmsUse.GENERATE, KmsUse.UNWRAP}),
        ("reader", {KmsUse.UNWRAP}),
        ("rewrapper", {KmsUse.REWRAP, KmsUse.DESCRIBE}),
    ],
)
def test_the_adapter_writes_the_policies_of_the_page(name, uses):
    assert grants_of(AwsKmsAdapter.policy(KEY_IN_PAGE, uses, "shop")) == grants_of(POLICIES[name])


def grants_of(policy):
    """Return what each statement grants, whatever it is called."""
    found = []
    for statement in json.loads(policy)["Statement"]:
        actions = statement["Action"]
        every = {actions} if isinstance(actions, str) else {*actions}
        found.append((every, statement["Resource"], statement.get("Condition")))
    return found


def test_check_finds_in_each_role_what_the_page_says(kms, key, role):
    required = {
        name: [
            check.action
            for check in AwsKmsAdapter(key, client=kms.client(role(name))).check("shop")
            if check.granted
        ]
        for name in ("writer", "reader", "rotator")
    }
    assert required == {
        "writer": ["kms:GenerateDataKey", "kms:Decrypt"],
        "reader": ["kms:Decrypt"],
        "rotator": ["kms:ReEncrypt*", "kms:DescribeKey"],
    }


def test_the_programs_of_the_page_run(served, key):
    blocks = re.findall(
        r"<!-- not run: it needs an AWS account; [^>]*-->\n```python\n(.*?)```", PAGE, re.DOTALL
    )
    assert len(blocks) == 2
    program = "\n".join(blocks).replace(KEY_IN_PAGE, key)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "yes kms:Decrypt" in done.stdout


@pytest.mark.slow
def test_the_example_of_a_test_is_the_file_and_passes():
    example = ROOT / "examples" / "test_under_moto.py"
    assert f"```python\n{example.read_text()}```" in PAGE
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(example)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_policy_is_one_that_aws_would_take():
    assert set(POLICIES) == {"writer", "reader", "rotator", "rewrapper", "roller"}
    for text in POLICIES.values():
        assert json.loads(text)["Version"] == "2012-10-17"
