"""An S3 server of our own, for the faults that real ones do not inject on demand.

    with S3Stub() as stub:
        stub.plan(Fault(503, "SlowDown"), times=3, method="PUT")
        store = stub.open()

One bucket, path style, objects in a dictionary. PUT (with `If-None-Match: *`), GET, HEAD, DELETE
and ListObjectsV2 with pages; a PUT without the right `x-amz-checksum-sha256` is refused. Signatures
are not checked. Faults apply to the next requests that they match, in the order of planning.
"""

from __future__ import annotations

import base64
import hashlib
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from oplog.archive.objectstore.protocol import ObjectStore
from oplog.archive.objectstore.store_url import open_store
from oplog.backoff import Backoff

BUCKET = "stub"
MOMENT = datetime(2026, 7, 6, 10, tzinfo=UTC)
CREDENTIALS = {
    "access_key_id": "nobody",
    "secret_access_key": "nothing",
    "region": "us-east-1",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of a request.

    `status` and `code` are answered instead of the truth, if given; `performed` says that the
    request is carried out all the same. `dropped`: the connection ends without an answer.
    `late`: carried out by `land()`. `stalled`: no answer until the stub closes. `change` alters
    the answer's body, `length` is what its header says then.
    """

    status: int = 0
    code: str = ""
    performed: bool = False
    dropped: bool = False
    late: bool = False
    stalled: bool = False
    change: Callable[[bytes], bytes] | None = None
    length: int | None = None


@dataclass(slots=True)
class Planned:
    fault: Fault
    times: int
    method: str | None
    path: str | None
    larger: int


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def refuse(status: int, code: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told</Message></Error>"
    return Answer(status, body.encode())


class S3Stub:
    """The server; `objects` is what it keeps, `requests` what it was asked.

    `ignores_conditions` and `refuses_conditions` are servers that lie and that answer 501.
    `locked` are paths that may not be overwritten or deleted. `between` is called between the
    check of a condition and the write: given, the server is one that checks, then writes.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        """With a `context`, over TLS."""
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self.wants_checksums = True
        self.ignores_conditions = False
        self.refuses_conditions = False
        self.locked: set[str] = set()
        self.between: Callable[[str], None] | None = None
        self.page_length = 1000
        self.arrange: Callable[[list[str]], list[str]] = sorted
        self._planned: list[Planned] = []
        self._late: list[Request] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stub = self
        self._scheme = "http" if context is None else "https"
        if context is not None:
            # Whoever refuses the certificate must not hold up the server: not in `accept`.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        assert self.errors == []

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def open(
        self, prefix: str = "pre/fix", *, backoff: Backoff | None = None, **options: str
    ) -> ObjectStore:
        """Open a store of the product's on this server."""
        return open_store(
            f"s3://{BUCKET}/{prefix}",
            options={"endpoint": self.endpoint, **CREDENTIALS, **options},
            timeout_seconds=10,
            backoff=backoff,
        )

    def plan(
        self,
        fault: Fault,
        *,
        times: int = 1,
        method: str | None = None,
        path: str | None = None,
        larger: int = -1,
    ) -> None:
        """Let the fault befall the next `times` requests of this method and this path's end.

        And with a body `larger` than that.
        """
        self._planned.append(Planned(fault, times, method, path, larger))

    def forget(self) -> None:
        """From here on nothing befalls a request."""
        self._planned.clear()

    def land(self) -> None:
        """Carry out the requests that were late, now."""
        with self._lock:
            late, self._late = self._late, []
        for request in late:
            self.carry_out(request)

    # -- inside -----------------------------------------------------------------------

    def answer(self, request: Request) -> tuple[Answer, Fault]:
        with self._lock:
            self.requests.append(request)
            fault = self._find_fault(request)
        if fault.late:
            self._late.append(request)
            return Answer(0), fault
        if fault.stalled:
            self._closing.wait()
        answer = Answer(0)
        if fault.performed or not (fault.status or fault.dropped or fault.stalled):
            answer = self.carry_out(request)
        if fault.status:
            answer = refuse(fault.status, fault.code)
        return answer, fault

    def _find_fault(self, request: Request) -> Fault:
        for planned in self._planned:
            matches = planned.method in {None, request.method}
            matches = matches and len(request.body) > planned.larger
            if matches and planned.times and request.path.endswith(planned.path or ""):
                planned.times -= 1
                return planned.fault
        return Fault()

    def carry_out(self, request: Request) -> Answer:
        bucket, _, path = request.path.lstrip("/").partition("/")
        if bucket != BUCKET:
            return refuse(404, "NoSuchBucket")
        if request.method == "PUT":
            return self._write(path, request)
        if not path:
            return self._list(request.query)
        return self._remove(path) if request.method == "DELETE" else self._read(path)

    def _remove(self, path: str) -> Answer:
        with self._lock:
            if path in self.locked:
                return refuse(403, "AccessDenied")
            self.objects.pop(path, None)
        return Answer(204)

    def _read(self, path: str) -> Answer:
        with self._lock:
            data = self.objects.get(path)
        if data is None:
            return refuse(404, "NoSuchKey")
        moment = format_datetime(MOMENT, usegmt=True)
        return Answer(200, data, {"ETag": '"tag"', "Last-Modified": moment})

    def _write(self, path: str, request: Request) -> Answer:
        digest = base64.b64encode(hashlib.sha256(request.body).digest()).decode()
        if self.wants_checksums and request.headers.get("x-amz-checksum-sha256") != digest:
            return refuse(400, "BadDigest")
        conditional = request.headers.get("if-none-match") == "*"
        if conditional and self.refuses_conditions:
            return refuse(501, "NotImplemented")
        with self._lock:
            taken = conditional and not self.ignores_conditions and path in self.objects
            if not self.between:
                return refuse(412, "PreconditionFailed") if taken else self._keep(path, request)
        self.between(path)
        with self._lock:
            return refuse(412, "PreconditionFailed") if taken else self._keep(path, request)

    def _keep(self, path: str, request: Request) -> Answer:
        if path in self.locked and path in self.objects:
            return refuse(403, "ObjectLocked")
        self.objects[path] = request.body
        return Answer(200, b"", {"ETag": '"tag"'})

    def _list(self, query: Mapping[str, str]) -> Answer:
        with self._lock:
            names = [name for name in self.objects if name.startswith(query.get("prefix", ""))]
            names = self.arrange([name for name in names if name > query.get("start-after", "")])
            first = int(query.get("continuation-token", "0"))
            page = names[first : first + self.page_length]
            sizes = {name: len(self.objects.get(name, b"")) for name in page}
        last = first + len(page)
        found = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size>"
            f"<LastModified>{MOMENT:%Y-%m-%dT%H:%M:%S}.000Z</LastModified></Contents>"
            for name, size in sizes.items()
        )
        more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < len(names) else ""
        truncated = "true" if more else "false"
        body = (
            "<?xml version='1.0'?><ListBucketResult>"
            f"<IsTruncated>{truncated}</IsTruncated>{more}{found}</ListBucketResult>"
        )
        return Answer(200, body.encode())


class _Server(ThreadingHTTPServer):
    stub: S3Stub
    daemon_threads = True
    # Eight racers connect at once; the rest of them would wait for a second SYN.
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        import sys  # noqa: PLC0415 - the base class hands the error over like this

        error = sys.exception()
        # A client that gave up waiting is among the faults; anything else is a fault of the stub.
        if error is not None and not isinstance(error, (ConnectionError, ssl.SSLError)):
            self.stub.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet for header and body: two of them meet delayed acknowledgements, 40 ms each.
    wbufsize = 1 << 16
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def serve(self) -> None:
        parts = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(parts.path),
            {name: values[0] for name, values in parse_qs(parts.query).items()},
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(self.headers.get("Content-Length") or 0)),
        )
        answer, fault = self.server.stub.answer(request)
        if fault.dropped or fault.late or fault.stalled:
            self.close_connection = True
            return
        body = fault.change(answer.body) if fault.change else answer.body
        length = len(answer.body) if fault.length is None else fault.length
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        if length != len(body):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = serve  # noqa: N815 - named by the base class
