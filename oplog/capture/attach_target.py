"""What an application gives to `attach`: engines and factories of sessions, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.base import OptionEngine


def find_proxied(engine: Engine) -> Engine:
    """The engine behind one with execution options."""
    # engine.execution_options() gives a proxy whose events reach the same connections. Its type
    # is compared, because a mock has every attribute, and so do its attributes without end.
    found: Any = engine
    while issubclass(type(found), OptionEngine):
        found = found._proxied  # noqa: SLF001 - SQLAlchemy gives no public way
    proxied: Engine = found
    return proxied


def find_factory(target: Any) -> Any:
    """The async_sessionmaker in an async_scoped_session; anything else as it is."""
    factory = getattr(target, "session_factory", None)
    return factory if is_async_factory(factory) else target


def find_engine(target: Any) -> Engine | None:
    """The engine that `target` is, wraps or connects to; None for what only looks like one."""
    target = getattr(target, "sync_engine", target)
    found = target.engine if isinstance(target, Connection) else target
    return found if isinstance(found, Engine) else None


def list_keywords(target: Any) -> Mapping[str, Any]:
    """What a session factory gives to its sessions."""
    factory = getattr(target, "session_factory", target)
    found: Mapping[str, Any] = getattr(factory, "kw", None) or {}
    return found


def is_async_factory(target: Any) -> bool:
    """`target` is an async_sessionmaker."""
    # Without touching sqlalchemy.ext.asyncio, which needs greenlet to import.
    return any(
        c.__module__ == "sqlalchemy.ext.asyncio.session" and c.__name__ == "async_sessionmaker"
        for c in type(target).__mro__
    )
