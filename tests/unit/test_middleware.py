"""Requests put what they are into the metadata, in ASGI and in WSGI, without a framework."""

from __future__ import annotations

import asyncio
import wsgiref.util
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from oplog import asgi, context, current_context, wsgi

Scope = dict[str, Any]


def make_scope(*headers: tuple[bytes, bytes], kind: str = "http") -> Scope:
    return {"type": kind, "method": "POST", "headers": list(headers)}


def call(app: Any, scope: Scope) -> None:
    async def main() -> None:
        await app(scope, None, None)

    asyncio.run(main())


class Seen:
    """An ASGI application that routes, answers, and works on in the background."""

    def __init__(self) -> None:
        self.early: dict[str, list[str]] = {}
        self.late: dict[str, list[str]] = {}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.early = current_context()
        scope["route"] = SimpleNamespace(path="/accounts/{number}")
        scope["user"] = "ada"
        self.late = await asyncio.to_thread(current_context)


def test_a_request_has_its_id_its_route_and_what_the_application_found_out() -> None:
    app = Seen()
    call(
        asgi.ContextMiddleware(app, describe=lambda scope: {"actor": scope.get("user")}),
        make_scope((b"x-request-id", b"r-1")),
    )
    assert app.early == {"request": ["r-1"]}
    assert app.late == {
        "request": ["r-1"],
        "route": ["POST /accounts/{number}"],
        "actor": ["ada"],
    }
    assert current_context() == {}


@pytest.mark.parametrize("header", [b"", b"two words", b"x" * 129, b"\x00", b"caf\xc3\xa9", b"a\n"])
def test_an_id_that_cannot_be_metadata_is_replaced_by_one_that_is_drawn(header: bytes) -> None:
    app = Seen()
    call(asgi.ContextMiddleware(app), make_scope((b"x-request-id", header)))
    assert UUID(app.early["request"][0]).version == 7
    again = Seen()
    call(asgi.ContextMiddleware(again), make_scope())
    assert again.early["request"] != app.early["request"]


def test_every_question_in_a_request_has_the_same_id() -> None:
    app = Seen()
    call(asgi.ContextMiddleware(app), make_scope())
    assert app.early["request"] == app.late["request"]


def test_what_is_no_request_passes() -> None:
    app = Seen()
    call(asgi.ContextMiddleware(app), {"type": "lifespan"})
    assert app.early == {}


def test_a_mounted_application_tells_its_whole_route() -> None:
    app = Seen()
    call(asgi.ContextMiddleware(app), make_scope() | {"root_path": "/api"})
    assert app.late["route"] == ["POST /api/accounts/{number}"]


def test_requests_at_once_do_not_see_one_another() -> None:
    seen: dict[str, list[str]] = {}
    meet = asyncio.Barrier(2)

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await meet.wait()
        seen[scope["name"]] = current_context()["request"]

    async def main() -> None:
        both = asgi.ContextMiddleware(app)
        await asyncio.gather(
            *(
                both(make_scope((b"x-request-id", name.encode())) | {"name": name}, None, None)
                for name in ("one", "two")
            )
        )

    asyncio.run(main())
    assert seen == {"one": ["one"], "two": ["two"]}


# -- WSGI ---------------------------------------------------------------------------------------


class Lazy:
    """A WSGI application whose answer is made while it is sent."""

    def __init__(self) -> None:
        self.seen: list[dict[str, list[str]]] = []

    def __call__(self, environ: Scope, start_response: Any) -> Iterable[bytes]:
        self.seen.append(current_context())
        return self._generate(environ)

    def _generate(self, environ: Scope) -> Iterator[bytes]:
        try:
            environ["user"] = "ada"
            self.seen.append(current_context())
            yield b"one"
            yield b""
            yield b"two"
        finally:
            self.seen.append(current_context())


def test_a_response_that_is_made_later_has_the_request_too() -> None:
    app = Lazy()
    wrapped = wsgi.ContextMiddleware(app, describe=lambda environ: {"actor": environ.get("user")})
    with context(server="one"):
        body = wrapped({"HTTP_X_REQUEST_ID": "r-2"}, None)
        chunks = iter(body)
        assert next(chunks) == b"one"
        assert current_context() == {"server": ["one"]}
        assert list(chunks) == [b"", b"two"]
        body.close()  # type: ignore[attr-defined]
    whole = {"server": ["one"], "request": ["r-2"]}
    assert app.seen == [whole, whole | {"actor": ["ada"]}, whole | {"actor": ["ada"]}]


def test_an_answer_that_is_cut_off_is_closed_inside_the_request() -> None:
    app = Lazy()
    body = wsgi.ContextMiddleware(app)({"HTTP_X_REQUEST_ID": "r-3"}, None)
    next(iter(body))
    body.close()  # type: ignore[attr-defined]
    assert app.seen[-1] == {"request": ["r-3"]}


@pytest.mark.parametrize("kind", [list, tuple])
def test_answers_that_are_there_are_not_wrapped(kind: type[Any]) -> None:
    answer = kind([b"x"])
    assert wsgi.ContextMiddleware(lambda *_: answer)({}, None) is answer


def test_files_are_left_to_the_server() -> None:
    answer = wsgiref.util.FileWrapper(SimpleNamespace(read=lambda _: b""))  # type: ignore[arg-type]
    environ = {"wsgi.file_wrapper": wsgiref.util.FileWrapper}
    assert wsgi.ContextMiddleware(lambda *_: answer)(environ, None) is answer
