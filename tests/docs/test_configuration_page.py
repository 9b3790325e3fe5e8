"""The reference of settings says what the code says: every name, variable, default and meaning."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from eventseal.configuration import Settings, load_settings

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()


def shown(default: object) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, timedelta):
        for unit, seconds in (("d", 86_400), ("h", 3_600), ("m", 60)):
            if default and not default % timedelta(seconds=seconds):
                return f"`{default // timedelta(seconds=seconds)}{unit}`"
        return f"`{default.total_seconds():g}s`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{int(default)}`" if isinstance(default, int) else f"`{default}`"


def rows() -> list[str]:
    return [
        f"| `{name}` | `EVENTSEAL_{name.upper()}` | {shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


@pytest.mark.parametrize("row", rows(), ids=list(Settings.model_fields))
def test_each_setting_has_its_row(row):
    assert row in PAGE.splitlines(), f"docs/configuration.md should have the row\n{row}"


def test_no_row_is_left_of_a_setting_that_is_gone():
    assert set(re.findall(r"^\| `(\w+)` \| `EVENTSEAL_", PAGE, re.MULTILINE)) == set(Settings.model_fields)


def test_the_example_file_is_one(tmp_path, monkeypatch):
    (example,) = re.findall(r"```toml title=\"eventseal.toml\"\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "example.toml"
    file.write_text(example)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"EVENTSEAL_{name.upper()}", raising=False)
    settings = load_settings(file)
    assert settings.rotation_max_age == timedelta(days=30)
    assert len(settings.kms_key) == 2


def test_every_written_default_reads_as_the_default():
    for name, default in re.findall(r"^\| `(\w+)` \| `EVENTSEAL_\w+` \| `([^`]+)` \|", PAGE, re.MULTILINE):
        assert getattr(load_settings(**{name: default}), name) == Settings.model_fields[name].default
