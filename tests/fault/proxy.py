"""A proxy between an application and Postgres that loses what a test tells it to lose.

Holds sockets and threads, and knows of the protocol only where a client's request ends. Must
not know the product. The hard thing is that a test needs to know what reached the server: a
connection that is cut is closed towards the server only behind the bytes it was meant to get,
and counts as ended when the server's process has closed its side, which it does after it has
ended the transaction.

Faults are armed: they strike the dialogue that begins with the next thing sent on a connection
that exists at that moment. Everything is gated by events; nothing sleeps.
"""

from __future__ import annotations

import enum
import select
import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy.engine import URL

PATIENCE_SECONDS = 60.0
"""After which a test that waits for what never comes fails."""
_CHUNK = 65_536
_RESET = struct.pack("ii", 1, 0)
_REQUEST_ENDS = (b"Q", b"S")
"""A simple query, or the Sync behind a pipeline: the client now waits for answers."""


class Fault(enum.Enum):
    """What becomes of a dialogue; what is true in the end stands behind it."""

    NONE = "passed on, and counted"
    DROP_REQUEST = "the request is dropped, the client reset: it never arrived"
    HOLD_REQUEST = "the client is reset; the request arrives when delivered, or never"
    SILENT = "the request is held and the client waits, until delivered or hung up"
    DROP_ANSWER = "the request arrives, the answer is swallowed, the client reset"
    FORGE_ANSWER = "the request arrives; the client gets a forged answer, and the end"
    HOLD_ANSWER = "the request arrives; the client waits until the answer is delivered"
    CUT_REQUEST = "both sides are cut after some bytes of what the client sends"
    CUT_ANSWER = "both sides are cut after some bytes of what the server answers"


class Dialogue:
    """What one connection says from the moment of arming on, and what the server answers."""

    def __init__(self, fault: Fault, offset: int, *, reset: bool, forged: bytes) -> None:
        self.fault = fault
        self.offset = offset
        self.reset = reset
        self.forged = forged
        self.request = bytearray()
        """What the client sent, arrived or not."""
        self.answer = bytearray()
        """What the server said, passed on or not."""
        self._struck = threading.Event()
        self._ended = threading.Event()
        self._decided = threading.Event()
        self._delivers = False

    @property
    def struck(self) -> bool:
        """The fault happened: the dialogue was as long as its offset at least."""
        return self._struck.is_set()

    def deliver(self) -> None:
        """Let pass what is held."""
        self._delivers = True
        self._decided.set()

    def hang_up(self) -> None:
        """Close what is held open; what is held never arrives."""
        self._decided.set()

    def wait_struck(self) -> None:
        """Return once the fault has happened."""
        if not self._struck.wait(PATIENCE_SECONDS):
            raise AssertionError(f"nothing came to {self.fault}")

    def wait_ended(self) -> None:
        """Return once the server's process has ended, and with it the transaction."""
        if not self._ended.wait(PATIENCE_SECONDS):
            raise AssertionError(f"the server did not end its side after {self.fault}")

    def _strike(self) -> None:
        self._struck.set()

    def _await_decision(self) -> bool:
        """Whether what is held shall be delivered."""
        self._decided.wait(PATIENCE_SECONDS)
        return self._delivers

    def _end(self) -> None:
        self._ended.set()


class FaultProxy:
    """Listens on 127.0.0.1 and passes everything on to the server of `upstream`."""

    def __init__(self, upstream: URL) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stop, self._stopping = socket.socketpair()
        self._guard = threading.Lock()
        self._armed: tuple[Dialogue, int] | None = None
        self._dialogues: list[Dialogue] = []
        self._threads: list[threading.Thread] = []
        self._connections = 0
        self._another = threading.Event()
        self.failures: list[BaseException] = []
        self._start(self._accept)

    @property
    def url(self) -> URL:
        """The upstream's database through the proxy, unencrypted: it reads along."""
        bare = self._upstream.difference_update_query(["host", "port"])
        through = bare.set(host="127.0.0.1", port=self.port)
        return through.update_query_dict({"sslmode": "disable", "gssencmode": "disable"})

    def arm(
        self, fault: Fault, *, offset: int = 0, reset: bool = False, forged: bytes = b""
    ) -> Dialogue:
        """Let the fault strike the next thing that a client sends on an open connection.

        `offset` counts bytes of that direction, from there on until the connection ends or
        `disarm` is called. `reset`: the client's side of a cut ends with a reset.
        """
        dialogue = Dialogue(fault, offset, reset=reset, forged=forged)
        self._another.clear()
        with self._guard:
            self._armed = dialogue, self._connections
            self._dialogues.append(dialogue)
        return dialogue

    def disarm(self) -> None:
        """What has not struck does not strike any more."""
        with self._guard:
            self._armed = None
            for dialogue in self._dialogues:
                if not dialogue.struck:
                    dialogue.fault = Fault.NONE

    def wait_connection(self) -> None:
        """Return once a connection was made after the last arming: to cancel, say."""
        if not self._another.wait(PATIENCE_SECONDS):
            raise AssertionError("nobody connected")

    def close(self) -> None:
        """End every connection and thread; raise what went wrong in one."""
        for dialogue in self._dialogues:
            dialogue.hang_up()
        self._stopping.close()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            if thread.is_alive():
                raise AssertionError("a thread of the proxy does not end")
        self._stop.close()
        self._listener.close()
        if self.failures:
            raise self.failures[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- threads --------------------------------------------------------------------------

    def _start(self, target: Any, *arguments: Any) -> None:
        def run() -> None:
            try:
                target(*arguments)
            except BaseException as failure:  # noqa: BLE001 - raised by close()
                self.failures.append(failure)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while self._listener in self._wait(self._listener):
            client, _ = self._listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._guard:
                self._connections += 1
                number = self._connections
            self._another.set()
            self._start(_Link(self, client, self._connect(), number).run)

    def _connect(self) -> socket.socket:
        query = self._upstream.query
        host = str(query.get("host") or self._upstream.host or "127.0.0.1")
        port = int(str(query.get("port") or self._upstream.port or 5432))
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(Path(host) / f".s.PGSQL.{port}"))
        return server

    def _wait(self, *sockets: socket.socket) -> list[socket.socket]:
        """Those that can be read; none when the proxy is to end."""
        ready, _, _ = select.select([self._stop, *sockets], [], [])
        return [] if self._stop in ready else ready

    def _take_armed(self, number: int) -> Dialogue | None:
        with self._guard:
            if self._armed is None or number > self._armed[1]:
                return None
            dialogue, self._armed = self._armed[0], None
            return dialogue


class _Link:
    """One client's connection and its own to the server."""

    def __init__(
        self, proxy: FaultProxy, client: socket.socket, server: socket.socket, number: int
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._number = number
        self._dialogue: Dialogue | None = None

    def run(self) -> None:
        with self._client, self._server:
            self._relay()
            self._end_server()
        if self._dialogue is not None:
            self._dialogue._end()

    def _relay(self) -> None:
        """Pass on until either side ends or a fault cuts them."""
        going = True
        while going:
            ready = self._proxy._wait(self._client, self._server)
            if not ready:
                return
            if self._client in ready:
                data = _receive(self._client)
                going = bool(data) and self._hear_client(data)
            if going and self._server in ready:
                data = _receive(self._server)
                going = bool(data) and self._hear_server(data)

    def _end_server(self) -> None:
        """Let the server see the end behind what it was sent, and wait for its own."""
        try:
            self._server.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it ended first
        while self._proxy._wait(self._server):
            data = _receive(self._server)
            if not data:
                return
            if self._dialogue is not None:
                self._dialogue.answer += data

    def _hear_client(self, data: bytes) -> bool:
        """Whether the connection goes on."""
        self._dialogue = self._proxy._take_armed(self._number) or self._dialogue
        dialogue = self._dialogue
        if dialogue is None:
            return _send(self._server, data)
        before = len(dialogue.request)
        dialogue.request += data
        match dialogue.fault:
            case Fault.CUT_REQUEST:
                return self._cut_request(dialogue, data, dialogue.offset - before)
            case Fault.DROP_REQUEST | Fault.HOLD_REQUEST | Fault.SILENT:
                return self._hold_request(dialogue)
            case _:
                return _send(self._server, data)

    def _cut_request(self, dialogue: Dialogue, data: bytes, left: int) -> bool:
        if left > len(data):
            return _send(self._server, data)
        _send(self._server, data[:left])
        dialogue._strike()
        self._hang_up_client(reset=dialogue.reset)
        return False

    def _hold_request(self, dialogue: Dialogue) -> bool:
        if not measure_request(dialogue.request):
            return True
        dialogue._strike()
        if dialogue.fault is not Fault.SILENT:
            self._hang_up_client(reset=True)
        if dialogue.fault is Fault.DROP_REQUEST:
            return False
        delivers = dialogue._await_decision()
        goes_on = dialogue.fault is Fault.SILENT
        dialogue.fault = Fault.NONE
        if not delivers:
            return False
        return _send(self._server, bytes(dialogue.request)) and goes_on

    def _hear_server(self, data: bytes) -> bool:
        """Whether the connection goes on."""
        dialogue = self._dialogue
        if dialogue is None:
            return _send(self._client, data)
        before = len(dialogue.answer)
        dialogue.answer += data
        match dialogue.fault:
            case Fault.DROP_ANSWER:
                dialogue._strike()
                self._hang_up_client(reset=True)
                return False
            case Fault.FORGE_ANSWER:
                dialogue._strike()
                _send(self._client, dialogue.forged)
                self._hang_up_client(reset=False)
                return False
            case Fault.HOLD_ANSWER:
                dialogue._strike()
                delivers = dialogue._await_decision()
                dialogue.fault = Fault.NONE
                return delivers and _send(self._client, data)
            case Fault.CUT_ANSWER if before + len(data) >= dialogue.offset:
                _send(self._client, data[: dialogue.offset - before])
                dialogue._strike()
                self._hang_up_client(reset=dialogue.reset)
                return False
            case _:
                return _send(self._client, data)

    def _hang_up_client(self, *, reset: bool) -> None:
        if reset:
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._client.close()


def forge_error(sqlstate: str) -> bytes:
    """What a server says that ends itself in the middle of something."""
    fields = f"SFATAL\0VFATAL\0C{sqlstate}\0Mforged\0\0".encode()
    return b"E" + (len(fields) + 4).to_bytes(4, "big") + fields


def measure_request(request: bytes | bytearray) -> int:
    """Bytes up to the last message that asks for answers; 0 if there is none whole.

    `request` begins with a message. A client may send a Flush behind what it asks.
    """
    place = measured = 0
    while place + 5 <= len(request):
        kind = bytes(request[place : place + 1])
        place += 1 + int.from_bytes(request[place + 1 : place + 5], "big")
        if kind in _REQUEST_ENDS and place <= len(request):
            measured = place
    return measured


def _receive(source: socket.socket) -> bytes:
    """What came; nothing when the other side has ended, in whatever way."""
    try:
        return source.recv(_CHUNK)
    except ConnectionError:
        return b""


def _send(target: socket.socket, data: bytes) -> bool:
    """Whether the other side is still there."""
    try:
        target.sendall(data)
    except ConnectionError:
        return False
    return True
