"""Secrets in the words of any vendor."""

import pytest

from eventseal_kms.scrubbing import scrubbed

SECRETS = {
    "a password with @": ("https://u:p@SS@host:1/x", "SS"),
    "a token of Vault": ("denied for hvs.CAESIJ1234567890", "CAESIJ"),
    "a JWT": ("login with eyJhbGciOi.eyJzdWIiOi.c2ln failed", "eyJzdWIiOi"),
    "a secret key": ("key wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "MDENG"),
    "a token of the environment": ("got planted-token", "planted"),
    "a password of a proxy": ("proxy says planted-password", "planted"),
}


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_it_is_hidden_whoever_says_it(monkeypatch, text, secret):
    monkeypatch.setenv("VAULT_TOKEN", "planted-token")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:planted-password@host:3128")
    assert secret not in scrubbed(text)


def test_a_short_secret_does_not_hide_common_words(monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "e")
    assert scrubbed("the key here", ["key"]) == "the key here"


def test_a_uuid_is_secret_where_the_vendor_has_such_secrets():
    text = "id 1234abcd-12ab-34cd-56ef-1234567890ab"
    assert scrubbed(text) == text
    assert scrubbed(text, hides_uuids=True) == "id ***"
