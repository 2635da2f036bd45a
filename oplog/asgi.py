"""Middleware for ASGI: every record that a request writes says which request it was.

Plain ASGI: it needs no framework, and works in FastAPI, Starlette, Litestar, Quart and Django.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from oplog.metadata_context import Metadata, context
from oplog.request_name import choose_request_id, describe_nothing, name_route

# Frameworks have types of their own for a scope: plain mappings, or typed dictionaries.
Scope: TypeAlias = Any
Asgi: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ["ContextMiddleware"]


@dataclass(frozen=True)
class ContextMiddleware:
    """ASGI middleware: `request` and `route` of every record that a request writes.

    `request` is the header X-Request-ID, or else an id that is drawn for the request. `route` is
    the method and the template of the path, such as `POST /accounts/{number}`, where the framework
    tells it; never the path itself, which may hold what metadata must not. `describe` gets the
    scope at each COMMIT, so it knows what the application has found out by then, such as the user;
    its keys replace the others. A value of None leaves a key out. Background tasks and streamed
    responses of the request carry all of it.
    """

    app: Asgi
    describe: Callable[[Scope], Metadata] = describe_nothing

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Run the application; what is no request passes."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        named = dict(scope["headers"])
        request = choose_request_id(named.get(b"x-request-id", b"").decode("latin-1"))
        with context(
            lambda: {"route": _find_route(scope), **self.describe(scope)}, request=request
        ):
            await self.app(scope, receive, send)


def _find_route(scope: Scope) -> str | None:
    # Litestar says it as text, Starlette and FastAPI by the route's object.
    template = scope.get("path_template") or getattr(scope.get("route"), "path", None)
    return name_route(scope.get("method", "WEBSOCKET"), scope.get("root_path"), template)
