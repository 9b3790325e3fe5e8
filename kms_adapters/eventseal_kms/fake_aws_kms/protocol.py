"""
The protocol of KMS: JSON 1.1 over HTTP, with signed requests.

It runs in this process under a real boto3 client, or on a loopback port.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from socket import SHUT_RDWR
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import EndpointConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from socket import socket

    from botocore.awsrequest import AWSPreparedRequest

_STATUSES = {
    "KMSInternalException": HTTPStatus.INTERNAL_SERVER_ERROR,
    "KeyUnavailableException": HTTPStatus.INTERNAL_SERVER_ERROR,
    "InternalFailure": HTTPStatus.INTERNAL_SERVER_ERROR,
    "DependencyTimeoutException": HTTPStatus.SERVICE_UNAVAILABLE,
    "ServiceUnavailableException": HTTPStatus.SERVICE_UNAVAILABLE,
}
_TARGET_PREFIX = "TrentService."
_CREDENTIAL = re.compile(r"Credential=(?P<access_key>[^/]+)/[0-9]+/(?P<region>[^/]+)/kms/aws4_request")


class Refusal(Exception):  # noqa: N818  (an answer of the service, not an error of the fake)
    """
    An error answer.

    Args:
        code: The code of AWS, such as ``DisabledException``.
        message: The message. AWS sends none with some codes.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        """The HTTP status that KMS sends with the code."""
        return _STATUSES.get(self.code, HTTPStatus.BAD_REQUEST)


@dataclass(frozen=True, slots=True)
class Signed:
    """
    The facts in a request's headers.

    Attributes:
        operation: The name, such as ``Decrypt``.
        access_key: The access key that signed it, or empty if none did.
        region: The Region that it was signed for.
    """

    operation: str
    access_key: str
    region: str

    @classmethod
    def read(cls, header: Callable[[str], Any]) -> Signed:
        """Read ``X-Amz-Target`` and ``Authorization``, found by *header*."""
        found = _CREDENTIAL.search(_text(header("Authorization")))
        return cls(
            operation=_text(header("X-Amz-Target")).removeprefix(_TARGET_PREFIX),
            access_key=found["access_key"] if found else "",
            region=found["region"] if found else "",
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """
    An answer of the fake.

    Attributes:
        status: The HTTP status, or 0 if the connection ends without an answer.
        body: The body, as JSON.
    """

    status: int
    body: Mapping[str, Any]

    def encode(self) -> tuple[bytes, dict[str, str]]:
        """Write body and headers."""
        body = json.dumps(self.body).encode() if self.body else b""
        headers = {
            "Content-Type": "application/x-amz-json-1.1",
            "Content-Length": str(len(body)),
            "x-amzn-RequestId": str(uuid4()),
        }
        return body, headers


def answer_in_process(answer: Callable[[Signed, bytes], Reply]) -> Callable[..., Any]:
    """Create the handler that answers a boto3 client before it sends."""

    def before_send(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        sent: Any = request.body or b""
        body = sent.encode() if isinstance(sent, str) else bytes(sent)
        reply = answer(Signed.read(request.headers.get), body)
        if not reply.status:
            raise EndpointConnectionError(endpoint_url=request.url)
        body, fields = reply.encode()
        headers = HTTPHeaders.from_dict(fields)
        return AWSResponse(request.url, reply.status, headers, _Body(body))

    return before_send


class _Body(BytesIO):
    """A body in the form of urllib3."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


@contextmanager
def serving(answer: Callable[[Signed, bytes], Reply]) -> Iterator[str]:
    """Answer on a free loopback port until the block ends. Yield the URL."""
    server = _Server(("127.0.0.1", 0), _handler(answer))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="fake-aws-kms")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.hang_up()
        server.server_close()


class _Server(ThreadingHTTPServer):
    """A server that can end the connections that clients keep open."""

    daemon_threads = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket] = set()
        self._lock = Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        with self._lock:
            for connection in self._open:
                connection.shutdown(SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing, because many tests disconnect their clients on purpose."""


def _handler(answer: Callable[[Signed, bytes], Reply]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Send the answer in one piece. A second piece would wait for the client's delayed acknowledgement.
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = answer(Signed.read(self.headers.get), sent)
            if not reply.status:
                self.close_connection = True
                return
            body, headers = reply.encode()
            self.send_response(reply.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
