"""The proxy does what its faults are named for: what reaches whom, to the byte.

Before a server that is a socket of the test's own, and before Postgres without the product.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import URL

from tests.fault.proxy import PATIENCE_SECONDS, Fault, FaultProxy, measure_request

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

HELLO, BYE = b"hello", b"bye"


class Wire:
    """A client and a server that are both the test's, and the proxy between them."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.proxy = FaultProxy(URL.create("postgresql", host="127.0.0.1", port=port))
        self.client = socket.create_connection(("127.0.0.1", self.proxy.port))
        self.server, _ = self._listener.accept()
        for end in (self.client, self.server):
            end.settimeout(PATIENCE_SECONDS)
        self.client.sendall(HELLO)
        assert self.server.recv(99) == HELLO
        self.server.sendall(BYE)
        assert self.client.recv(99) == BYE

    def close(self) -> None:
        self.proxy.close()
        for end in (self.client, self.server, self._listener):
            end.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def read_all(source: socket.socket) -> bytes:
    """Everything until the other side ends, however it does."""
    read = b""
    try:
        while data := source.recv(99):
            read += data
    except ConnectionResetError:
        pass
    return read


SYNC = b"S\x00\x00\x00\x04"
REQUEST = b"B\x00\x00\x00\x07abc" + SYNC


@pytest.mark.parametrize("offset", range(len(REQUEST) + 1))
@pytest.mark.parametrize("pieces", [1, 2], ids=["whole", "in pieces"])
def test_a_cut_request_is_cut_to_the_byte(wire: Wire, offset: int, pieces: int) -> None:
    dialogue = wire.proxy.arm(Fault.CUT_REQUEST, offset=offset)
    if pieces == 2 and offset > 6:
        wire.client.sendall(REQUEST[:6])
        assert wire.server.recv(6) == REQUEST[:6]
        wire.client.sendall(REQUEST[6:])
        assert read_all(wire.server) == REQUEST[6:offset]
    else:
        wire.client.sendall(REQUEST)
        assert read_all(wire.server) == REQUEST[:offset]
    assert read_all(wire.client) == b""
    assert dialogue.struck
    wire.server.close()
    dialogue.wait_ended()


@pytest.mark.parametrize("offset", range(5))
def test_a_cut_answer_is_cut_to_the_byte(wire: Wire, offset: int) -> None:
    dialogue = wire.proxy.arm(Fault.CUT_ANSWER, offset=offset)
    wire.client.sendall(REQUEST)
    assert wire.server.recv(99) == REQUEST
    wire.server.sendall(b"12")
    if offset > 2:
        assert wire.client.recv(2) == b"12"
        wire.server.sendall(b"34")
    assert read_all(wire.client) == b"1234"[:offset][2 if offset > 2 else 0 :]
    assert read_all(wire.server) == b""
    assert dialogue.struck


def test_what_is_disarmed_passes(wire: Wire) -> None:
    dialogue = wire.proxy.arm(Fault.CUT_REQUEST, offset=99)
    wire.client.sendall(REQUEST)
    assert wire.server.recv(99) == REQUEST
    wire.proxy.disarm()
    wire.client.sendall(b"x" * 200)
    assert wire.server.recv(200, socket.MSG_WAITALL) == b"x" * 200
    assert not dialogue.struck


def test_a_connection_made_after_arming_is_left_alone(wire: Wire) -> None:
    dialogue = wire.proxy.arm(Fault.DROP_REQUEST)
    with socket.create_connection(("127.0.0.1", wire.proxy.port)) as later:
        server, _ = wire._listener.accept()
        with server:
            later.sendall(REQUEST)
            assert server.recv(99) == REQUEST
    assert not dialogue.struck
    wire.client.sendall(REQUEST)
    assert read_all(wire.server) == b""
    assert dialogue.struck


def test_where_a_request_ends() -> None:
    flush = b"H\x00\x00\x00\x04"
    assert measure_request(REQUEST) == len(REQUEST)
    assert measure_request(REQUEST + flush) == len(REQUEST)
    assert measure_request(REQUEST + flush[:3]) == len(REQUEST)
    assert [measure_request(REQUEST[:n]) for n in range(len(REQUEST))] == [0] * len(REQUEST)
    assert measure_request(b"Q\x00\x00\x00\x06S\x00") == 7


TRUTH = {
    Fault.NONE: (True, True),
    Fault.DROP_REQUEST: (False, False),
    Fault.HOLD_REQUEST: (False, True),
    Fault.SILENT: (True, True),
    Fault.DROP_ANSWER: (False, True),
    Fault.HOLD_ANSWER: (True, True),
}
"""Whether the client is told of success, and whether it is true, once what is held is delivered."""


@pytest.mark.parametrize("fault", TRUTH, ids=lambda fault: fault.name)
def test_what_is_true_of_a_commit(database_url: URL, fault: Fault) -> None:
    told, true = TRUTH[fault]
    upstream = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(upstream, autocommit=True) as direct, FaultProxy(database_url) as proxy:
        direct.execute("CREATE TABLE happened (n int)")
        url = proxy.url.set(drivername="postgresql").render_as_string(hide_password=False)
        client = psycopg.connect(url)
        client.execute("INSERT INTO happened VALUES (1)")
        dialogue = proxy.arm(fault)
        dialogue.deliver()
        if told:
            client.commit()
        else:
            with pytest.raises(psycopg.OperationalError):
                client.commit()
        client.close()
        dialogue.wait_ended()
        row = direct.execute("SELECT count(*) FROM happened").fetchone()
        assert row == (int(true),)
