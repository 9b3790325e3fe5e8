"""Where settings come from, which one wins, and what a wrong one gets."""

from __future__ import annotations

import pickle
import traceback
from datetime import timedelta

import pytest

from eventseal.configuration import Settings, load_settings
from eventseal.configuration.loading import environment_names, settings_file
from eventseal.errors import ConfigurationError

PASSWORD = "correct-horse-battery"
URL = f"postgresql://app:{PASSWORD}@db.example/shop"


def write(path, text):
    path.write_text(text)
    return path


def refusal(*args, **overrides) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(*args, **overrides)
    return caught.value


def test_without_any_source_the_defaults_hold():
    settings = load_settings()
    assert settings == Settings()
    assert settings.application == "default"
    assert settings.kms_key == ()
    assert settings.store_url is None
    assert settings.always_encrypt is True
    assert settings.rotation_max_age == timedelta(days=90)


def test_the_file_in_the_working_directory_is_read(tmp_path):
    write(tmp_path / "eventseal.toml", 'application = "shop"\ncache_max_keys = 5\n')
    settings = load_settings()
    assert (settings.application, settings.cache_max_keys) == ("shop", 5)


def test_the_variable_names_another_file_and_an_argument_yet_another(tmp_path, monkeypatch):
    write(tmp_path / "eventseal.toml", 'application = "from-default"')
    named = write(tmp_path / "named.toml", 'application = "from-variable"')
    given = write(tmp_path / "given.toml", 'application = "from-argument"')
    monkeypatch.setenv("EVENTSEAL_CONFIG", str(named))
    assert load_settings().application == "from-variable"
    assert load_settings(given).application == "from-argument"
    assert load_settings(str(given)).application == "from-argument"
    assert settings_file() == named
    assert settings_file(given) == given


def test_the_environment_wins_over_the_file_and_arguments_over_both(tmp_path, monkeypatch):
    write(tmp_path / "eventseal.toml", 'application = "file"\ncache_ttl = 10\ncompression = "zlib"')
    monkeypatch.setenv("EVENTSEAL_APPLICATION", "environment")
    monkeypatch.setenv("EVENTSEAL_CACHE_TTL", "20")
    settings = load_settings(application="argument")
    assert settings.application == "argument"
    assert settings.cache_ttl == timedelta(seconds=20)
    assert settings.compression == "zlib"


def test_a_broken_value_in_the_file_does_not_matter_where_the_environment_wins(tmp_path, monkeypatch):
    write(tmp_path / "eventseal.toml", 'compression = "rar"')
    monkeypatch.setenv("EVENTSEAL_COMPRESSION", "zlib")
    assert load_settings().compression == "zlib"


def test_variables_are_known_in_either_case(monkeypatch):
    monkeypatch.setenv("eventseal_application", "shop")
    assert load_settings().application == "shop"


@pytest.mark.parametrize("source", ["argument", "file", "environment"])
@pytest.mark.parametrize("setting", ["kms_key", "tables", "unsealed_tables"])
def test_lists_are_written_as_lists_or_with_commas(tmp_path, monkeypatch, source, setting):
    first, second = {"kms_key": ("local://a", "arn:aws:kms:b"), "tables": ("shop.models:A", "shop:B")}.get(
        setting, ("a", "b")
    )
    if source == "argument":
        assert getattr(load_settings(**{setting: [first, second]}), setting) == (first, second)
        assert getattr(load_settings(**{setting: f" {first} , {second},"}), setting) == (first, second)
    elif source == "file":
        write(tmp_path / "eventseal.toml", f'{setting} = ["{first}", "{second}"]')
        assert getattr(load_settings(), setting) == (first, second)
        write(tmp_path / "eventseal.toml", f'{setting} = "{first},{second}"')
        assert getattr(load_settings(), setting) == (first, second)
    else:
        monkeypatch.setenv(f"EVENTSEAL_{setting.upper()}", f"{first},{second}")
        assert getattr(load_settings(), setting) == (first, second)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (60, 60),
        (1.5, 1.5),
        ("60", 60),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("90 s", 90),
        ("15m", 900),
        ("12h", 43_200),
    ],
)
def test_durations_are_seconds_or_carry_a_unit(written, seconds):
    assert load_settings(cache_ttl=written).cache_ttl == timedelta(seconds=seconds)


def test_days_and_never_are_ages():
    assert load_settings(rotation_max_age="30d").rotation_max_age == timedelta(days=30)
    assert load_settings(rotation_max_age="never").rotation_max_age is None
    assert load_settings(rotation_max_age=timedelta(days=1)).rotation_max_age == timedelta(days=1)


def test_sizes_carry_units():
    assert load_settings(max_plaintext="2MiB").max_plaintext == 2**21
    assert load_settings(max_plaintext=1000).max_plaintext == 1000


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("kms_keys", "kms_key"),
        ("stor_url", "store_url"),
        ("aplication", "application"),
        ("KMS_KEY", "kms_key"),
    ],
)
def test_an_unknown_setting_names_the_nearest_known_one(tmp_path, name, nearest):
    file = write(tmp_path / "eventseal.toml", f'{name} = "secret value"')
    error = refusal()
    assert name in str(error)
    assert file.name in str(error)
    assert error.remedy == f"Did you mean {nearest}?"
    assert "secret value" not in str(error)
    assert (
        refusal(**{name: 1, "path": write(tmp_path / "empty.toml", "")}).remedy == f"Did you mean {nearest}?"
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("EVENTSEAL_KMSKEY", "EVENTSEAL_KMS_KEY"),
        ("EVENTSEAL_STORE_URI", "EVENTSEAL_STORE_URL"),
        ("EVENTSEAL_CONFIGURATION", "EVENTSEAL_CONFIG"),
        ("EVENTSEAL_CACHE__TTL", "EVENTSEAL_CACHE_TTL"),
    ],
)
def test_an_unknown_variable_names_the_nearest_known_one(monkeypatch, name, nearest):
    monkeypatch.setenv(name, "secret value")
    error = refusal()
    assert name in str(error)
    assert error.remedy == f"Did you mean {nearest}?"
    assert "secret value" not in str(error)


def test_other_variables_are_none_of_its_business(monkeypatch):
    monkeypatch.setenv("EVENTSEALS_KEY", "x")
    monkeypatch.setenv("MY_EVENTSEAL_KEY", "x")
    load_settings()


SERVICE_LINKS = {
    "SERVICE_HOST": "10.0.0.11",
    "SERVICE_PORT": "8080",
    "SERVICE_PORT_HTTP": "8080",
    "PORT": "tcp://10.0.0.11:8080",
    "PORT_8080_TCP": "tcp://10.0.0.11:8080",
    "PORT_8080_TCP_ADDR": "10.0.0.11",
    "PORT_8080_TCP_PORT": "8080",
    "PORT_8080_TCP_PROTO": "tcp",
}


@pytest.mark.parametrize("service", ["EVENTSEAL", "EVENTSEAL_API", "EVENTSEAL_CACHE_TTL"])
def test_the_variables_of_kubernetes_for_a_service_pass(monkeypatch, service):
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(f"{service}_{name}", value)
    monkeypatch.setenv("EVENTSEAL_APPLICATION", "shop")
    assert load_settings().application == "shop"
    assert environment_names() == {"application": "EVENTSEAL_APPLICATION"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EVENTSEAL_STORE_PORT", "5432"),
        ("EVENTSEAL_SERVICE", "tcp://10.0.0.11:8080"),
        ("EVENTSEAL_PORT_HTTP", "8080"),
        ("EVENTSEAL_SERVICE_HOSTS", "10.0.0.11"),
        ("eventseal_service_host", "10.0.0.11"),
    ],
)
def test_a_variable_that_only_resembles_one_of_kubernetes_is_unknown(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert str(refusal()) == f"unknown environment variable {name}"


def test_a_setting_with_the_name_of_a_service_link_stays_a_setting(monkeypatch):
    monkeypatch.setitem(Settings.model_fields, "api_service_host", Settings.model_fields["application"])
    monkeypatch.setenv("EVENTSEAL_API_SERVICE_HOST", "10.0.0.11")
    assert environment_names() == {"api_service_host": "EVENTSEAL_API_SERVICE_HOST"}


def test_an_empty_variable_sets_nothing(tmp_path, monkeypatch):
    file = write(tmp_path / "eventseal.toml", 'application = "file"\ncache_ttl = 10')
    for name in (*Settings.model_fields, "config", "no_such_setting"):
        monkeypatch.setenv(f"EVENTSEAL_{name.upper()}", "")
    monkeypatch.setenv("eventseal_compression", "")
    assert load_settings() == Settings(application="file", cache_ttl=10)
    assert settings_file() == file.relative_to(tmp_path)
    assert environment_names() == {}


def test_a_settings_file_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does(tmp_path):
    (tmp_path / "eventseal.toml").write_bytes(b'\xef\xbb\xbfapplication = "shop"\r\ncache_ttl = 10\r\n')
    assert load_settings() == Settings(application="shop", cache_ttl=10)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("kms_key", "dGhpcyBpcyBhIHJhdyBrZXkgb2YgMzIgYnl0ZXMhISE=", "entry 1 is not a key URI"),
        ("kms_key", "local://a,local://a", "listed twice"),
        ("kms_key", 5, "a list of strings"),
        ("tables", "shop.models.Order", "module:Class"),
        ("tables", "shop-models:Order", "module:Class"),
        ("application", "", "0 bytes"),
        ("application", "e\u0301", "normal form"),
        ("compression", "rar", "'zstd', 'zlib' or 'none'"),
        ("max_plaintext", 0, "greater than or equal to 1"),
        ("rotation_max_age", 0, "must be positive"),
        ("rotation_max_age", "sometimes", "a number with a unit"),
        ("rotation_max_items", 2**32 + 1, "less than or equal to 4294967296"),
        ("cache_ttl", "-5", "a number with a unit"),
        ("cache_ttl", -5, "must be positive"),
        ("cache_ttl", float("nan"), "a number with a unit"),
        ("cache_ttl", float("inf"), "a number with a unit"),
        ("cache_ttl", True, "a number with a unit"),
        ("cache_open_grace", -1, "must not be negative"),
        ("cache_max_keys", 0, "greater than or equal to 1"),
        ("cache_max_keys", "many", "valid integer"),
        ("always_encrypt", "perhaps", "valid boolean"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_and_not_shown(setting, value, said):
    error = refusal(**{setting: value})
    assert str(error).startswith(f"{setting}: ")
    assert said in str(error)
    assert "dGhpcyBp" not in str(error)
    assert isinstance(error, ValueError)


def test_every_wrong_value_is_told_at_once_with_its_source(tmp_path, monkeypatch):
    write(tmp_path / "eventseal.toml", 'compression = "rar"')
    monkeypatch.setenv("EVENTSEAL_CACHE_TTL", "soon")
    said = str(refusal(cache_max_keys=0))
    assert "compression (eventseal.toml): " in said
    assert "cache_ttl (EVENTSEAL_CACHE_TTL): " in said
    assert "cache_max_keys: " in said


def test_a_named_file_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    assert "nowhere.toml" in str(refusal(tmp_path / "nowhere.toml"))
    monkeypatch.setenv("EVENTSEAL_CONFIG", "gone.toml")
    error = refusal()
    assert "gone.toml" in str(error)
    assert "eventseal init" in error.remedy


def test_a_folder_is_no_settings_file(tmp_path):
    assert "cannot be read" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"kms_key = local://x",
        b"a = 1\na = 2",
        b"\xff\xfe",
        b"a = " + b"9" * 5000,
        b"a = " + b"[" * 5000 + b"]" * 5000,
    ],
)
def test_a_file_that_is_not_toml_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "eventseal.toml").write_bytes(content)
    assert "eventseal.toml is not TOML" in str(refusal())


def everything_shown(error: BaseException) -> str:
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    return shown + repr(error) + repr(vars(error)) + repr(pickle.dumps(error))


def test_urls_show_in_no_repr_no_dump_and_no_message():
    settings = load_settings(store_url=URL, key_store_url=URL)
    assert settings.store_url is not None
    assert settings.store_url.get_secret_value() == URL
    for shown in (
        repr(settings),
        str(settings),
        f"{settings}",
        settings.model_dump_json(),
        str(settings.model_dump()),
    ):
        assert PASSWORD not in shown


@pytest.mark.parametrize("source", ["file", "environment", "argument"])
def test_urls_show_in_no_traceback_of_a_refusal(tmp_path, monkeypatch, source):
    overrides = {"compression": "rar"}
    if source == "file":
        write(tmp_path / "eventseal.toml", f'store_url = "{URL}"')
    elif source == "environment":
        monkeypatch.setenv("EVENTSEAL_STORE_URL", URL)
    else:
        overrides["store_url"] = URL
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**overrides)
    # Without the test's own frame, which has the URL among its locals.
    error = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    assert PASSWORD not in everything_shown(error)
    assert error.__context__ is None


def test_a_wrong_url_is_not_shown_either():
    with pytest.raises(ConfigurationError) as caught:
        load_settings(store_url=[URL], compression="rar")
    assert PASSWORD not in everything_shown(caught.value.with_traceback(caught.value.__traceback__.tb_next))


def test_a_broken_file_does_not_show_its_content(tmp_path):
    write(tmp_path / "eventseal.toml", f'store_url = "{URL}\n')
    assert PASSWORD not in everything_shown(refusal())


def test_settings_cannot_be_changed():
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.application = "other"


def test_options_of_the_kms_are_tables_in_the_file_and_json_in_a_variable(tmp_path, monkeypatch):
    file = tmp_path / "eventseal.toml"
    file.write_text('[kms_options.aws-kms]\nprofile = "prod"\ngrant_tokens = ["a", "b"]\n')
    assert load_settings(file).kms_options == {"aws-kms": {"profile": "prod", "grant_tokens": ["a", "b"]}}
    monkeypatch.setenv("EVENTSEAL_KMS_OPTIONS", '{"aws-kms": {"region": "us-east-1"}}')
    assert load_settings(file).kms_options == {"aws-kms": {"region": "us-east-1"}}
    given = {"aws-kms": {"profile": "dev"}}
    assert load_settings(file, kms_options=given).kms_options == given
    monkeypatch.setenv("EVENTSEAL_KMS_OPTIONS", "")
    assert load_settings(file).kms_options["aws-kms"]["profile"] == "prod"


@pytest.mark.parametrize(
    "text", ["{hunter2", "[]", '{"aws-kms": "hunter2"}', '{"aws-kms": {"profile": "a", "profile": "b"}}']
)
def test_wrong_options_of_the_kms_are_refused_without_their_value(monkeypatch, text):
    monkeypatch.setenv("EVENTSEAL_KMS_OPTIONS", text)
    with pytest.raises(ConfigurationError, match=r"kms_options \(EVENTSEAL_KMS_OPTIONS\)") as raised:
        load_settings()
    assert "hunter2" not in str(raised.value)
