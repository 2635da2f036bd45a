"""Middleware for ASGI and WSGI: every record that a request writes says which request it was.

Plain ASGI and WSGI: it needs no framework, and works in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, TypeAlias

from oplog.metadata_context import Metadata, context, put_in_force
from oplog.ordered_id import draw_ordered_id

Scope: TypeAlias = MutableMapping[str, Any]
Asgi: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
Wsgi: TypeAlias = Callable[[Any, Any], Iterable[bytes]]

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
"""What is taken from a header. It is somebody else's text, which must not stop a COMMIT."""


def describe_nothing(_: MutableMapping[str, Any]) -> Metadata:
    """What an application says of a request by default."""
    return {}


@dataclass(frozen=True)
class AsgiContext:
    """ASGI middleware: `request` and `route` of every record that a request writes.

    `request` is the header X-Request-ID, or else an id that is drawn for the request. `route` is
    the method and the template of the path, such as `POST /accounts/{number}`, where the framework
    tells it; never the path itself, which may hold what metadata must not. `describe` gets the
    scope at each COMMIT, so it knows what the application has found out by then, such as the user;
    its keys replace the others. Background tasks of the request carry all of it.
    """

    app: Asgi
    describe: Callable[[Scope], Metadata] = describe_nothing

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Run the application; what is no request passes."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        named = dict(scope["headers"])
        request = _choose_request_id(named.get(b"x-request-id", b"").decode("latin-1"))
        with context(
            lambda: {"route": _find_route(scope), **self.describe(scope)}, request=request
        ):
            await self.app(scope, receive, send)


@dataclass(frozen=True)
class WsgiContext:
    """WSGI middleware: `request` of every record that a request writes, as `AsgiContext` has it.

    `describe` gets the environ at each COMMIT. A response that is generated later carries it too.
    """

    app: Wsgi
    describe: Callable[[dict[str, Any]], Metadata] = describe_nothing

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Run the application, and later its response, in a context of the request's own."""
        request = _choose_request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        here = copy_context()

        def answer() -> Iterable[bytes]:
            put_in_force(lambda: self.describe(environ), {"request": request})
            return self.app(environ, start_response)

        body = here.run(answer)
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(body, (list, tuple)) or (
            isinstance(wrapper, type) and isinstance(body, wrapper)
        ):
            # Nothing of the application runs any more, and servers know how to send these.
            return body
        return _Body(body, here)


class _Body:
    """A response whose generator runs in the context of its request."""

    def __init__(self, body: Iterable[bytes], here: Context) -> None:
        self._body = body
        self._here = here

    def __iter__(self) -> Iterator[bytes]:
        chunks = self._here.run(iter, self._body)
        while (chunk := self._here.run(next, chunks, None)) is not None:
            yield chunk

    def close(self) -> None:
        """End the application's part of the request."""
        close = getattr(self._body, "close", None)
        if close is not None:
            self._here.run(close)


def _choose_request_id(header: str) -> str:
    return header if _REQUEST_ID.fullmatch(header) else str(draw_ordered_id())


def _find_route(scope: Scope) -> str | None:
    path = scope.get("path_template") or getattr(scope.get("route"), "path", None)
    if not isinstance(path, str) or not path:
        return None
    method = scope.get("method", "WEBSOCKET")
    return f"{method} {scope.get('root_path', '')}{path}"
