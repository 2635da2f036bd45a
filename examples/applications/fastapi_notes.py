"""FastAPI: sessions are injected, a request commits several times, and works on in background."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, Header, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from examples.applications.notes import Note, count_words, make_log
from oplog.asgi import ContextMiddleware


def describe(scope: Any) -> dict[str, str | None]:
    """Who a request is from: `sign_in` has found it out when the first transaction commits."""
    return {"actor": scope.get("state", {}).get("user")}


async def sign_in(request: Request, authorization: Annotated[str | None, Header()] = None) -> None:
    """Stands in for a check of a token."""
    request.state.user = authorization


async def open_session(request: Request) -> AsyncIterator[AsyncSession]:
    """A session for a request."""
    async with request.app.state.sessions() as session:
        yield session


def make_application(url: str) -> FastAPI:
    """The application on the database at `url`."""
    engine = create_async_engine(url)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    make_log().attach(sessions)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    application = FastAPI(lifespan=lifespan, dependencies=[Depends(sign_in)])
    application.state.sessions = sessions
    application.add_middleware(ContextMiddleware, describe=describe)
    _add_routes(application, sessions)
    return application


def _add_routes(application: FastAPI, sessions: async_sessionmaker[AsyncSession]) -> None:
    async def index(key: int) -> None:
        async with sessions.begin() as session:
            count_words(await session.get_one(Note, key))

    @application.post("/notes/{key}")
    async def add(
        key: int,
        background: BackgroundTasks,
        session: Annotated[AsyncSession, Depends(open_session)],
    ) -> str:
        note = Note(id=key, text="a draft")
        session.add(note)
        await session.commit()
        note.text = "a note of four words"
        await session.commit()
        background.add_task(index, key)
        return "added"

    @application.post("/imports")
    async def bring_in() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for key in (11, 12):
                async with sessions.begin() as session:
                    session.add(Note(id=key, text="imported"))
                yield f"{key}\n"

        return StreamingResponse(lines())
