"""
The meanings of exceptions that are no answer of AWS.

They come from settings, from the credential chain, or from the connection. Botocore lets exceptions of Python
through, so the step in which one was raised decides what it means (docs/decisions/0032).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    KmsError,
    KmsForbiddenError,
    KmsUnavailableError,
)
from eventseal_kms.aws.clients import Step

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Meaning:
    """
    The meaning of a failure for the caller.

    Attributes:
        error: The class of the error.
        text: The event. In the message, it follows the action and the key.
        remedy: The remedy, if that of the class does not fit.
        variables: The variables from which a wrong value may come. ``None`` if no setting is at fault.
        is_quoted: Whether the message quotes AWS or botocore, without secrets.
    """

    error: type[EventSealError]
    text: str
    remedy: str | None = None
    variables: tuple[str, ...] | None = None
    is_quoted: bool = False


_ENDPOINT = ("AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SOURCES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_SERVICE_TIMEOUT",
    "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
)

CREDENTIALS = Meaning(
    KmsForbiddenError,
    "AWS does not accept the credentials",
    "Renew the credentials (`aws sso login`, a new role session, new keys), and check this machine's clock.",
)
_SIGN_IN = Meaning(
    KmsForbiddenError, "the sign-in session of the credentials has ended", "Sign in again: `aws sso login`."
)
_CREDENTIAL_SOURCE = Meaning(
    KmsUnavailableError,
    "the credentials could not be fetched",
    "Check the source of this process's credentials: the metadata service, or credential_process.",
)
_NO_CREDENTIALS = Meaning(
    ConfigurationError,
    "no AWS credentials were found in the environment, the files, the container or the instance",
    "Give the process a role, set AWS_PROFILE or the AWS_ACCESS_KEY_ID pair, or pass client=.",
)
_USELESS_CREDENTIALS = Meaning(
    ConfigurationError,
    "the source of the credentials does not return credentials",
    "Correct the setting. A credential_process prints JSON with Version, AccessKeyId and SecretAccessKey.",
    _SOURCES,
)
_EXPIRED_CREDENTIALS = Meaning(
    KmsForbiddenError,
    "the source of the credentials returns expired credentials",
    "Renew the credentials at their source, and check this machine's clock.",
    _SOURCES,
)
_NO_CREDENTIAL_FILE = Meaning(
    ConfigurationError,
    "a file or a program for the credentials does not exist, or this user may not use it",
    "Correct the path in the setting, or create the file.",
    _SOURCES,
)
_MFA = Meaning(
    ConfigurationError,
    "the profile needs a code from an MFA device, and EventSeal never asks for one",
    "Use a profile without mfa_serial. Or run `aws sts get-session-token --serial-number ARN --token-code "
    "CODE`, and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN to what it prints.",
    (),
)
_NO_PROFILE = Meaning(
    ConfigurationError,
    "there is no such profile in the AWS configuration files",
    "Correct the name of the profile (AWS_PROFILE, or profile in kms_options or the key URI). `aws configure "
    "list-profiles` lists the profiles.",
    (),
)
_SETTINGS = Meaning(ConfigurationError, "the AWS settings of this process cannot be used", None, ())
_QUOTED_SETTINGS = Meaning(_SETTINGS.error, _SETTINGS.text, None, (), is_quoted=True)
_NO_URL = Meaning(
    ConfigurationError,
    "the endpoint is not a URL",
    "Write the endpoint as http://host:port or https://host.",
    _ENDPOINT,
)
_NO_URL_OR_PROXY = Meaning(
    ConfigurationError,
    "the endpoint or the proxy is not a URL that can be used",
    "Write it as http://host:port or https://host.",
    _ENDPOINT + _PROXIES,
)
_NOT_A_HEADER = Meaning(
    ConfigurationError,
    "the credentials have a character that no request can carry, such as a line break",
    "Set the credentials again, without line breaks.",
    _KEYS,
)
_NOT_SENDABLE = Meaning(
    ConfigurationError,
    "boto3 could not make the call with these settings",
    None,
    _KEYS + _ENDPOINT + _PROXIES,
)
_NO_CA_BUNDLE = Meaning(
    ConfigurationError,
    "the file with the trusted certificates does not exist, or this user may not read it",
    "Correct AWS_CA_BUNDLE, or the line ca_bundle of the profile.",
    ("AWS_CA_BUNDLE",),
)
_NO_ANSWER = Meaning(KmsUnavailableError, "there was no answer in time")
_NO_CONNECTION = Meaning(KmsUnavailableError, "the connection failed")
_UNKNOWN = Meaning(KmsError, "boto3 could not make the call")

MALFORMED = Meaning(ConfigurationError, "AWS does not accept the request", is_quoted=True)

# By the name of the exception's class, or else of its nearest base class. By name, because the oldest
# supported botocore lacks some of these classes.
_BY_NAME: Mapping[str, Meaning] = {
    # --- try again
    "ConnectTimeoutError": _NO_ANSWER,
    "ReadTimeoutError": _NO_ANSWER,
    "ConnectionError": _NO_CONNECTION,
    "HTTPClientError": _NO_CONNECTION,
    "IncompleteReadError": _NO_CONNECTION,
    "CapacityNotAvailableError": _NO_CONNECTION,
    "ResponseParserError": Meaning(
        KmsUnavailableError, "the answer is unreadable, so it does not come from KMS"
    ),
    "SSLError": Meaning(
        KmsUnavailableError,
        "EventSeal cannot open a trusted TLS connection to KMS",
        "Check the CA bundle (AWS_CA_BUNDLE), this machine's clock, and the service at the endpoint.",
    ),
    "CredentialRetrievalError": _CREDENTIAL_SOURCE,
    "MetadataRetrievalError": _CREDENTIAL_SOURCE,
    # --- log in
    "SSOError": _SIGN_IN,
    "LoginError": _SIGN_IN,
    "TokenRetrievalError": _SIGN_IN,
    # --- fix the settings
    "NoCredentialsError": _NO_CREDENTIALS,
    "PartialCredentialsError": Meaning(
        ConfigurationError, "the AWS credentials are incomplete", None, _KEYS, is_quoted=True
    ),
    "MfaCodeNeededError": _MFA,
    "RefreshWithMFAUnsupportedError": _MFA,
    "ProfileNotFound": _NO_PROFILE,
    "ConfigNotFound": _SETTINGS,
    "ConfigParseError": Meaning(
        ConfigurationError,
        "an AWS configuration file cannot be parsed",
        "Correct the file: ~/.aws/config, ~/.aws/credentials, or the one of AWS_CONFIG_FILE or "
        "AWS_SHARED_CREDENTIALS_FILE.",
        ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
    ),
    "InvalidConfigError": _QUOTED_SETTINGS,
    "InvalidDefaultsMode": _QUOTED_SETTINGS,
    "InvalidChecksumConfigError": _QUOTED_SETTINGS,
    "InvalidSTSRegionalEndpointsConfigError": _QUOTED_SETTINGS,
    "InvalidIMDSEndpointError": _USELESS_CREDENTIALS,
    "InvalidIMDSEndpointModeError": _QUOTED_SETTINGS,
    "InvalidRetryConfigurationError": _QUOTED_SETTINGS,
    "InvalidProxiesConfigError": _SETTINGS,
    "UnsupportedSignatureVersionError": _SETTINGS,
    "UnknownSignatureVersionError": _SETTINGS,
    "EndpointProviderError": _NO_URL,
    "InvalidEndpointConfigurationError": _NO_URL,
    "BaseEndpointResolverError": _SETTINGS,
    "MissingDependencyException": Meaning(
        ConfigurationError, "botocore needs another package for these settings", None, (), is_quoted=True
    ),
    "InvalidRegionError": _SETTINGS,
    # botocore's text for wrong parameters repeats their values, and a value may be a key.
    "ParamValidationError": Meaning(ConfigurationError, "boto3 does not accept the request"),
}

_FILE_PROBLEMS = ("FileNotFoundError", "PermissionError", "IsADirectoryError", "NotADirectoryError")
_WRONG_VALUES = ("ValueError", "TypeError", "AttributeError", "LookupError", "ArithmeticError")

_BY_STEP: Mapping[Step, Mapping[str, Meaning]] = {
    Step.CREDENTIALS: {
        **_BY_NAME,
        **dict.fromkeys(_FILE_PROBLEMS, _NO_CREDENTIAL_FILE),
        **dict.fromkeys(_WRONG_VALUES, _USELESS_CREDENTIALS),
        "ParamValidationError": _SETTINGS,
        "OSError": _CREDENTIAL_SOURCE,
        "RuntimeError": _EXPIRED_CREDENTIALS,
    },
    Step.ENDPOINT: {**_BY_NAME, **dict.fromkeys(_WRONG_VALUES, _NO_URL)},
    Step.CALL: {
        **_BY_NAME,
        **dict.fromkeys(_FILE_PROBLEMS, _NO_CA_BUNDLE),
        **dict.fromkeys(_WRONG_VALUES, _NOT_SENDABLE),
        "LocationValueError": _NO_URL_OR_PROXY,
        "OSError": _NO_CONNECTION,
    },
}

# botocore raises this error for every failure of credential_process. These words tell what another try
# cannot heal.
_BY_WORDS: Mapping[str, Meaning] = {
    "Unsupported version": _USELESS_CREDENTIALS,
    "Missing required key": _USELESS_CREDENTIALS,
}


def meaning_of(caught: Exception, step: Step) -> Meaning:
    """
    Return the meaning of an exception that is no answer of AWS.

    Args:
        caught: An exception of botocore, of urllib3 or of Python.
        step: The step of the call that raised it.
    """
    told = getattr(caught, "kwargs", {})
    for words, meaning in _BY_WORDS.items():
        if str(told.get("error_msg", "")).startswith(words):
            return meaning
    cause = _local_cause(caught)
    if type(cause) is ValueError and cause is not caught:  # urllib3 has its own classes for URLs
        return _NOT_A_HEADER
    table = _BY_STEP[step]
    return next((table[base.__name__] for base in type(cause).__mro__ if base.__name__ in table), _UNKNOWN)


def detail_of(caught: Exception) -> str:
    """Return the file or the host that an exception is about."""
    told = getattr(caught, "kwargs", {})
    if "endpoint_url" in told:
        return str(urlsplit(str(told["endpoint_url"])).netloc.rpartition("@")[2])  # the rest may be secret
    return str(getattr(caught, "filename", None) or told.get("path") or "")


def _local_cause(caught: Exception) -> Exception:
    """Return the local reason for a failure, or the exception itself."""
    if type(caught).__name__ not in {"HTTPClientError", "SSLError"}:
        return caught
    wrapped = getattr(caught, "kwargs", {}).get("error")
    inner = wrapped.args[0] if isinstance(wrapped, Exception) and wrapped.args else None
    for cause in (wrapped, inner):
        if isinstance(cause, ValueError) or (
            isinstance(cause, OSError) and type(cause).__name__ in _FILE_PROBLEMS
        ):
            return cause
    return caught
