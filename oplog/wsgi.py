"""Middleware for WSGI: every record that a request writes says which request it was.

Plain WSGI: it needs no framework. Flask and others on Werkzeug also tell the route.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, TypeAlias

from oplog.metadata_context import Metadata, put_in_force
from oplog.request_name import choose_request_id, describe_nothing, name_route

Environ: TypeAlias = dict[str, Any]
Wsgi: TypeAlias = Callable[[Any, Any], Iterable[bytes]]

__all__ = ["ContextMiddleware"]


@dataclass(frozen=True)
class ContextMiddleware:
    """WSGI middleware: `request` and `route` of every record, as `oplog.asgi.ContextMiddleware`.

    `describe` gets the environ at each COMMIT. `route` is known where Werkzeug routes, as in Flask.
    A response that is generated later carries all of it.
    """

    app: Wsgi
    describe: Callable[[Environ], Metadata] = describe_nothing

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Run the application, and later its response, in a context of the request's own."""
        request = choose_request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        here = copy_context()
        known: list[str] = []

        def begin(*args: Any, **kwargs: Any) -> Any:
            # Flask takes its request out of the environ before a response is generated.
            known.extend(filter(None, [_find_route(environ)]))
            return start_response(*args, **kwargs)

        def describe() -> Metadata:
            route = known[-1] if known else _find_route(environ)
            return {"route": route, **self.describe(environ)}

        def answer() -> Iterable[bytes]:
            put_in_force(describe, {"request": request})
            return self.app(environ, begin)

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


def _find_route(environ: Environ) -> str | None:
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return name_route(
        environ.get("REQUEST_METHOD"), environ.get("SCRIPT_NAME"), getattr(rule, "rule", None)
    )
