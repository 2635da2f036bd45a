"""Litestar: sessions are provided to handlers, and a task runs after the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Response, post
from litestar.background_tasks import BackgroundTask
from litestar.di import NamedDependency, Provide
from litestar.middleware import DefineMiddleware
from litestar.params import FromPath
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from examples.applications.notes import Note, count_words, make_log
from oplog.asgi import ContextMiddleware


def describe(scope: Any) -> dict[str, str | None]:
    """Who a request is from; a real application takes it from `scope["user"]`."""
    return {"actor": dict(scope["headers"]).get(b"authorization", b"").decode() or None}


def make_application(url: str) -> Litestar:
    """The application on the database at `url`."""
    engine = create_async_engine(url)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    make_log().attach(sessions)

    async def open_session() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            yield session

    async def index(key: int) -> None:
        async with sessions.begin() as session:
            count_words(await session.get_one(Note, key))

    @post("/notes/{key:int}", dependencies={"session": Provide(open_session)})
    async def add(key: FromPath[int], session: NamedDependency[AsyncSession]) -> Response[str]:
        session.add(Note(id=key, text="a note"))
        await session.commit()
        return Response("added", background=BackgroundTask(index, key))

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    return Litestar(
        route_handlers=[add],
        middleware=[DefineMiddleware(ContextMiddleware, describe=describe)],
        lifespan=[lifespan],
    )
