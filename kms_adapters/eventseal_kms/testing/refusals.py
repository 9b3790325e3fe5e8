"""How the fake refuses: with AWS's own codes and HTTP statuses."""

from __future__ import annotations

from http import HTTPStatus

_STATUSES = {
    "KMSInternalException": HTTPStatus.INTERNAL_SERVER_ERROR,
    "KeyUnavailableException": HTTPStatus.INTERNAL_SERVER_ERROR,
    "InternalFailure": HTTPStatus.INTERNAL_SERVER_ERROR,
    "DependencyTimeoutException": HTTPStatus.SERVICE_UNAVAILABLE,
    "ServiceUnavailableException": HTTPStatus.SERVICE_UNAVAILABLE,
}


class Refusal(Exception):  # noqa: N818  (an answer of the service, not an error of the fake)
    """
    An error answer.

    Args:
        code: AWS's, such as ``DisabledException``.
        message: AWS sends none with some codes.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        """The HTTP status that KMS sends with the code."""
        return _STATUSES.get(self.code, HTTPStatus.BAD_REQUEST)
