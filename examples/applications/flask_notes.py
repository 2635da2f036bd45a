"""Flask with Flask-SQLAlchemy: WSGI, a streamed answer, and work in threads of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa
from flask import Flask, Response, request, stream_with_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog import Keyring, Oplog, TypeCatalog, carry_context
from oplog.wsgi import ContextMiddleware

USER = "notes.user"


class Base(DeclarativeBase):
    """Models of the application."""


database = SQLAlchemy(model_class=Base)


class Note(database.Model):  # type: ignore[name-defined,misc]
    """A note."""

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    words: Mapped[int | None]


def sign_in() -> None:
    """Stands in for a check of a token."""
    request.environ[USER] = request.headers.get("Authorization")


def describe(environ: dict[str, Any]) -> dict[str, str | None]:
    """Who a request is from: `sign_in` has found it out when the first transaction commits."""
    return {"actor": environ.get(USER)}


def make_log() -> Oplog:
    """A log that refuses what nobody answers for."""
    catalog = TypeCatalog.from_models(database.metadata)
    return Oplog(catalog, keyring=Keyring.from_env(), require=("actor",))


def make_application(url: str) -> Flask:
    """The application on the database at `url`."""
    application = Flask("notes")
    application.config["SQLALCHEMY_DATABASE_URI"] = url
    database.init_app(application)
    application.before_request(sign_in)
    _add_views(application)
    wrapped: Any = ContextMiddleware(application.wsgi_app, describe=describe)
    application.wsgi_app = wrapped  # type: ignore[method-assign]
    return application


def _add_views(application: Flask) -> None:
    session = database.session

    def index(key: int) -> None:
        with application.app_context():
            note = session.get_one(Note, key)
            note.words = len(note.text.split())
            session.commit()

    @application.post("/notes/<int:key>")
    def add(key: int) -> str:
        session.add(Note(id=key, text="a draft"))
        session.commit()
        session.get_one(Note, key).text = "a note of four words"
        session.commit()
        return "added"

    @application.post("/notes/<int:key>/index")
    def count(key: int) -> str:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(carry_context(index), key).result()
        return "counted"

    @application.post("/imports")
    def bring_in() -> Response:
        def lines() -> Iterator[str]:
            for key in (11, 12):
                session.execute(sa.insert(Note), [{"id": key, "text": "imported"}])
                session.commit()
                yield f"{key}\n"

        return Response(stream_with_context(lines()))
