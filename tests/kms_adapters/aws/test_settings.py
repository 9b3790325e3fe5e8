"""Wrong AWS settings: each becomes one error of ours, whatever botocore raises, and shows no secret."""

import base64
import os
import traceback

import pytest

from eventseal.errors import ConfigurationError, EventSealError, KmsForbiddenError, KmsUnavailableError
from eventseal.kms import WrappedKey
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.aws.clients import Connection

KEY = bytes(range(100, 132))
SECRET = "hunter2-planted-in-the-settings"
ROLE = "arn:aws:iam::111122223333:role/shop"
BASE = (
    f"source_profile = base\n[profile base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = {SECRET}\n"
)
STATIC = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET}


def process(answer):
    return {"config": f"credential_process = sh -c '{answer}'"}


FAULTS = {
    "endpoint without scheme": (
        {**STATIC, "AWS_ENDPOINT_URL_KMS": "localhost:4566"},
        ConfigurationError,
        "AWS_ENDPOINT_URL_KMS",
    ),
    "endpoint without a port": (
        {**STATIC, "AWS_ENDPOINT_URL_KMS": f"http://u:{SECRET}@localhost:45x66"},
        ConfigurationError,
        "AWS_ENDPOINT_URL_KMS",
    ),
    "endpoint of another scheme": (
        {**STATIC, "AWS_ENDPOINT_URL_KMS": f"ftp://u:{SECRET}@localhost"},
        ConfigurationError,
        "AWS_ENDPOINT_URL_KMS",
    ),
    "endpoint with a password, down": (
        {**STATIC, "AWS_ENDPOINT_URL_KMS": f"http://u:{SECRET}@127.0.0.1:9"},
        KmsUnavailableError,
        "127.0.0.1:9",
    ),
    "proxy that is no URL": (
        {
            **STATIC,
            "HTTPS_PROXY": f"http://u:{SECRET}@local host:x",
            "AWS_ENDPOINT_URL_KMS": "https://k.test",
        },
        ConfigurationError,
        "HTTPS_PROXY",
    ),
    "proxy that is down": (
        {**STATIC, "HTTPS_PROXY": f"http://u:{SECRET}@127.0.0.1:9", "AWS_ENDPOINT_URL_KMS": "https://k.test"},
        KmsUnavailableError,
        "ProxyConnectionError",
    ),
    "process that prints no JSON": (process(f"echo {SECRET}"), ConfigurationError, "profile shop"),
    "process that prints a list": (process("echo []"), ConfigurationError, "profile shop"),
    "process that prints an object": (process("echo {}"), ConfigurationError, "profile shop"),
    "process that prints numbers": (
        process('echo "{\\"Version\\":1,\\"AccessKeyId\\":1,\\"SecretAccessKey\\":2}"'),
        ConfigurationError,
        "profile shop",
    ),
    "process that prints expired credentials": (
        process(
            'echo "{\\"Version\\":1,\\"AccessKeyId\\":\\"a\\",\\"SecretAccessKey\\":\\"b\\",'
            '\\"SessionToken\\":\\"c\\",\\"Expiration\\":\\"2020-01-01T00:00:00Z\\"}"'
        ),
        KmsForbiddenError,
        "expired",
    ),
    "process that fails": (process(f"echo {SECRET} >&2; exit 1"), KmsUnavailableError, "fetched"),
    "process that is missing": (
        {"config": "credential_process = /no/such/program"},
        ConfigurationError,
        "/no/such/program",
    ),
    "mfa": (
        {"config": f"role_arn = {ROLE}\nmfa_serial = arn:aws:iam::111122223333:mfa/me\n{BASE}"},
        ConfigurationError,
        "profile shop",
    ),
    "role without a source": ({"config": f"role_arn = {ROLE}"}, ConfigurationError, "source_profile"),
    "role with a missing source": (
        {"config": f"role_arn = {ROLE}\nsource_profile = gone"},
        ConfigurationError,
        "gone",
    ),
    "role that is no ARN": ({"config": f"role_arn = x\n{BASE}"}, ConfigurationError, "profile shop"),
    "role, and STS is down": (
        {"config": f"role_arn = {ROLE}\n{BASE}", "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9"},
        KmsUnavailableError,
        "127.0.0.1:9",
    ),
    "profile that is missing": ({"AWS_PROFILE": "gone", "config": ""}, ConfigurationError, "profile gone"),
    "half of the credentials": ({"AWS_ACCESS_KEY_ID": "AKID"}, ConfigurationError, "AWS_SECRET_ACCESS_KEY"),
    "file that is no configuration": ({"config": "nonsense"}, ConfigurationError, "AWS_CONFIG_FILE"),
    "file that is not UTF-8": ({"config": "region = \udcff"}, ConfigurationError, "AWS_CONFIG_FILE"),
    "certificates that are missing": (
        {**STATIC, "AWS_CA_BUNDLE": "/no/such.pem", "secure": "yes"},
        ConfigurationError,
        "AWS_CA_BUNDLE",
    ),
    "session token with a line break": (
        {**STATIC, "AWS_SESSION_TOKEN": f"{SECRET}\nx"},
        ConfigurationError,
        "AWS_SESSION_TOKEN",
    ),
    "web identity without its file": (
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/no/such/token", "AWS_ROLE_ARN": ROLE},
        ConfigurationError,
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    ),
    "container at another host": (
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://k.test/x"},
        ConfigurationError,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    "container token with a line break": (
        {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/x",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": f"{SECRET}\nx",
        },
        ConfigurationError,
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    ),
    "no sign-in": (
        {
            "config": "sso_session = s\nsso_account_id = 111122223333\nsso_role_name = r\n"
            "[sso-session s]\nsso_region = eu-west-1\nsso_start_url = https://x.awsapps.com/start"
        },
        KmsForbiddenError,
        "sign-in",
    ),
    "mode that does not exist": ({**STATIC, "AWS_DEFAULTS_MODE": "moon"}, ConfigurationError, "moon"),
    "nothing": ({}, ConfigurationError, "no AWS credentials"),
}


@pytest.fixture
def faulty(request, key, served, no_aws_settings, monkeypatch, tmp_path):
    """The environment and the profile of a fault."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in STATIC:
        monkeypatch.delenv(name, raising=False)
    settings, error, says = FAULTS[request.param]
    variables = dict(settings)
    if variables.pop("secure", None):
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", served.replace("http:", "https:"))
    if "config" in variables:
        file = tmp_path / "config"
        file.write_text(
            f"[profile shop]\n{variables.pop('config')}\n", encoding="utf-8", errors="surrogateescape"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
        monkeypatch.setenv("AWS_PROFILE", "shop")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return error, says


def operations(adapter, context):
    wrapped = WrappedKey(kek_uri=adapter.uri, kek_version=None, ciphertext=b"wrapped")
    return [
        lambda: adapter.generate_data_key(context),
        lambda: adapter.generate_data_keys([context] * 2),
        lambda: adapter.wrap(bytearray(KEY), context),
        lambda: adapter.wrap_many([(bytes(KEY), context)] * 2),
        lambda: adapter.unwrap(wrapped, context),
        lambda: adapter.unwrap_many([(wrapped, context)] * 2),
        lambda: adapter.rewrap_many([(wrapped, context)] * 2),
        adapter.check,
        adapter.current_version,
        adapter.created_at,
        lambda: adapter.schedule_deletion(7),
    ]


def errors_of(operation):
    try:
        outcomes = operation()
    except EventSealError as error:
        return [error]
    return list(outcomes)


def everything_that_shows(error):
    """The texts and the local variables of an error and of all that led to it."""
    found = [str(error), getattr(error, "remedy", ""), repr(vars(error))]
    for cause in (error.__cause__, error.__context__):
        if cause is not None:
            found += everything_that_shows(cause)
    step = error.__traceback__
    while step is not None:
        if "/tests/" not in step.tb_frame.f_code.co_filename:
            found += [repr(value) for value in step.tb_frame.f_locals.values()]
        step = step.tb_next
    return found


def forms(key):
    return [repr(key)[2:-1], key.hex(), base64.b64encode(key).decode()]


@pytest.mark.parametrize("faulty", FAULTS, indirect=True)
def test_a_fault_is_one_error_that_names_the_setting_and_shows_no_secret(faulty, key, context, capfd, caplog):
    kind, says = faulty
    adapter = AwsKmsAdapter(key)
    (first,) = errors_of(lambda: adapter.wrap(bytes(KEY), context))
    assert type(first) is kind, first
    assert says in str(first)
    assert first.remedy
    assert first.kek_uri == adapter.uri
    shown = "\n".join([*everything_that_shows(first), *capfd.readouterr(), caplog.text])
    for secret in (SECRET, *forms(KEY)):
        assert secret not in shown
    assert "MFA code for" not in shown
    assert "Traceback" not in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "faulty",
    ["endpoint without scheme", "role that is no ARN", "session token with a line break"],
    indirect=True,
)
def test_every_operation_translates_a_fault_and_no_frame_holds_a_key(faulty, key, context):
    adapter = AwsKmsAdapter(key)
    for operation in operations(adapter, context):
        for error in errors_of(operation):
            assert type(error) is faulty[0], error
            shown = "\n".join(everything_that_shows(error))
            assert not [secret for secret in (SECRET, *forms(KEY)) if secret in shown]


@pytest.mark.parametrize("faulty", ["process that prints no JSON"], indirect=True)
def test_a_wrong_setting_is_read_once_for_a_call_and_once_for_a_batch(faulty, key, context, monkeypatch):
    tries = []
    load = Connection.load_credentials
    monkeypatch.setattr(Connection, "load_credentials", lambda self: (tries.append(1), load(self)))
    adapter = AwsKmsAdapter(key)
    errors_of(lambda: adapter.wrap(bytes(KEY), context))
    assert len(tries) == 1
    outcomes = adapter.wrap_many([(bytes(KEY), context)] * 200)
    assert {type(outcome) for outcome in outcomes} == {ConfigurationError}
    assert len(tries) <= 1 + 20  # those in flight when the first one failed


def test_a_wrong_setting_that_was_corrected_is_taken_up(served, key, context, monkeypatch):
    adapter = AwsKmsAdapter(key)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "localhost:1")
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL_KMS"):
        adapter.generate_data_key(context)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", served)
    assert adapter.generate_data_key(context)


def test_what_a_given_clients_hooks_raise_is_translated_too(kms, key, context):
    client = kms.client()

    def fail(**_):
        raise ValueError(SECRET)

    client.meta.events.register("before-send.kms", fail, unique_id="first")
    client.meta.events.register_first("before-call.kms", fail)
    with pytest.raises(ConfigurationError, match="client=") as raised:
        AwsKmsAdapter(key, client=client).wrap(bytes(KEY), context)
    shown = "".join(traceback.format_exception(raised.value))
    assert SECRET not in shown
    assert repr(KEY)[2:-1] not in shown
