"""From a configured text to an adapter."""

import pytest

from eventseal.errors import ConfigurationError
from eventseal.kms import adapter_from_uri
from eventseal.kms import key_uris as uri


class Adapter:
    def __init__(self, text):
        self.text = text

    @classmethod
    def from_uri(cls, text):
        return cls(text)


class Point:
    def __init__(self, name):
        self.name = name

    def load(self):
        return Adapter


@pytest.fixture
def installed(monkeypatch):
    points = [Point("aws-kms"), Point("local")]
    monkeypatch.setattr(uri, "entry_points", lambda group: points if group == "eventseal.kms" else [])


@pytest.mark.parametrize(
    "text",
    [
        "local://dev.key",
        "aws-kms://arn:aws:kms:eu-west-1:111122223333:key/1",
        "arn:aws:kms:eu-west-1:1:key/1",
    ],
)
def test_the_scheme_or_a_bare_arn_selects_the_adapter_which_gets_the_whole_text(installed, text):
    adapter = adapter_from_uri(text)
    assert isinstance(adapter, Adapter)
    assert adapter.text == text


def test_a_scheme_without_an_adapter_names_the_installed_ones(installed):
    with pytest.raises(ConfigurationError, match="'gcp-kms'") as caught:
        adapter_from_uri("gcp-kms://projects/x")
    assert "aws-kms, local" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "dev.key", "local:dev.key"])
def test_what_is_no_uri_is_refused_with_the_form(installed, text):
    with pytest.raises(ConfigurationError, match="not written as a key URI"):
        adapter_from_uri(text)


def test_the_local_adapter_is_installed():
    assert "local" in {point.name for point in uri.entry_points(group=uri.ENTRY_POINT_GROUP)}


@pytest.mark.parametrize(
    ("options", "says", "remedy"),
    [
        ({"aws-kmz": {}}, "'aws-kmz'", "Did you mean aws-kms?"),
        ({"local": {"profile": "x"}}, "unknown option for local: profile", "none"),
    ],
)
def test_unknown_schemes_and_options_are_refused(installed, options, says, remedy):
    with pytest.raises(ConfigurationError, match=says) as caught:
        adapter_from_uri("local://dev.key", options)
    assert remedy in caught.value.remedy


def test_options_go_to_their_own_scheme_and_no_others(installed, monkeypatch):
    class WithOptions(Adapter):
        @classmethod
        def from_uri(cls, text, *, profile=None):
            return cls((text, profile))

    monkeypatch.setattr(Point, "load", lambda point: WithOptions if point.name == "aws-kms" else Adapter)
    options = {"aws-kms": {"profile": "prod"}}
    assert adapter_from_uri("arn:aws:kms:x", options).text == ("arn:aws:kms:x", "prod")
    assert adapter_from_uri("local://dev.key", options).text == "local://dev.key"
    with pytest.raises(ConfigurationError, match="profil") as caught:
        adapter_from_uri("arn:aws:kms:x", {"aws-kms": {"profil": "prod"}})
    assert "Did you mean profile?" in caught.value.remedy
