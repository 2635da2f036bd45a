"""Starlette: a blocking session in the threads of the framework, and a task after the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from examples.applications.notes import Note, count_words, make_log
from oplog.asgi import ContextMiddleware


def describe(scope: Any) -> dict[str, str | None]:
    """Who a request is from; a real application takes it from its session or token."""
    return {"actor": dict(scope["headers"]).get(b"authorization", b"").decode() or None}


def make_application(url: str) -> Starlette:
    """The application on the database at `url`."""
    engine = sa.create_engine(url)
    sessions = sessionmaker(engine)
    make_log().attach(sessions)

    def write(key: int) -> None:
        with sessions.begin() as session:
            session.add(Note(id=key, text="a note"))

    def index(key: int) -> None:
        with sessions.begin() as session:
            count_words(session.get_one(Note, key))

    async def add(request: Request) -> PlainTextResponse:
        key = request.path_params["key"]
        await run_in_threadpool(write, key)
        return PlainTextResponse("added", background=BackgroundTask(index, key))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        engine.dispose()

    return Starlette(
        routes=[Mount("/api", routes=[Route("/notes/{key:int}", add, methods=["POST"])])],
        middleware=[Middleware(ContextMiddleware, describe=describe)],
        lifespan=lifespan,
    )
