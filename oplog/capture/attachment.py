"""Sessions that are logged: what is attached, and what each session's transaction holds.

Translates session events into calls of `Transactions`, which writes the entries when COMMIT is
announced: after the last flush, and after all other listeners. Where a session is bound to a
connection, COMMIT may be somebody else's, so the entries are written in its own commit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, SessionTransaction, scoped_session, sessionmaker

from oplog.capture.attach_target import (
    find_engine,
    find_factory,
    find_proxied,
    is_async_factory,
    list_keywords,
)
from oplog.capture.listener import EngineListener
from oplog.capture.notices import mark_unconfirmed, warn_unconfirmed
from oplog.capture.recorder import LiveTables, Recorder
from oplog.capture.settling import begin_apart
from oplog.capture.transaction import Transactions
from oplog.errors import ConfigurationError
from oplog.receipt import Receipt

_EVENTS = (
    "after_begin",
    "before_commit",
    "after_flush_postexec",
    "after_commit",
    "after_transaction_end",
)
_FIRST = ("after_begin", "after_transaction_end")
"""Heard before other listeners, which may write rows or begin the next transaction there."""


@dataclass(frozen=True, slots=True)
class Enlisted:
    """A connection that takes part in a session's transaction."""

    connection: Connection
    transactions: Transactions
    recorder: Recorder
    earlier: int = 0
    """How many receipts its transaction had before."""


@dataclass(slots=True)
class SessionState:
    """What the log keeps for one session."""

    pending: dict[SessionTransaction | None, dict[str, list[str]]] = field(default_factory=dict)
    """Metadata by the savepoint (None is the root) that has no connection to hold it yet."""
    begun: set[SessionTransaction] = field(default_factory=set)
    """Savepoints that the database knows: SQLAlchemy sends SAVEPOINT with the first use."""
    enlisted: list[Enlisted] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    announced: bool = False
    """`before_commit` was heard."""
    flushes_last: bool = False
    """The next flush is the one before COMMIT: what it writes first needs no ticket."""
    repeats: bool = False
    """The transaction may be run again from its start, which it must not have committed then."""


class Attachments:
    """All sessions of one log."""

    def __init__(self, make_transactions: Callable[[Engine], Transactions]) -> None:
        self._make_transactions = make_transactions
        self._locks: dict[int, threading.Lock] = {}
        self._engines: WeakKeyDictionary[Engine, Transactions] = WeakKeyDictionary()
        self._states: WeakKeyDictionary[Session, SessionState] = WeakKeyDictionary()
        self._targets: dict[int, tuple[Any, type[Session] | None, Callable[[], None]]] = {}

    @property
    def _lock(self) -> threading.Lock:
        # By process: if a thread held it when the process forked, the child could never release it.
        return self._locks.setdefault(os.getpid(), threading.Lock())

    # -- attaching ------------------------------------------------------------------------

    def attach(self, target: Any) -> None:
        """Log every session of `target`; attaching twice is the same as once."""
        target = find_factory(target)
        if id(target) in self._targets:
            return
        engine = getattr(target, "sync_engine", target)
        if isinstance(engine, Engine):
            self._attach_engine(target, engine)
            return
        undo: Callable[[], None]
        session_class: type[Session]
        if is_async_factory(target):
            session_class, undo = self._attach_async(target)
        elif isinstance(target, (sessionmaker, scoped_session)) or (
            isinstance(target, type) and issubclass(target, Session)
        ):
            self._listen(target)
            factory: Any = getattr(target, "session_factory", target)
            session_class = getattr(factory, "class_", factory)
            undo = partial(self._unlisten, target)
        else:
            raise ConfigurationError(
                f"cannot attach to {target!r}",
                hint="give a sessionmaker, async_sessionmaker, scoped_session, "
                "async_scoped_session, Session subclass or engine",
            )
        self._targets[id(target)] = (target, session_class, undo)
        # The connections of its engine are this application's own, with a session or without.
        bound = find_engine(list_keywords(target).get("bind"))
        if bound is not None:
            self._find_transactions(bound).users.add(id(target))

    def detach(self, target: Any) -> None:
        """Stop logging the sessions of `target`."""
        target = find_factory(target)
        found = self._targets.pop(id(target), None)
        if found is None:
            raise ConfigurationError(
                f"{target!r} is not attached to this log",
                hint="detach the very object that was given to attach",
            )
        found[2]()
        for transactions in self._engines.values():
            transactions.users.discard(id(target))

    def _attach_engine(self, target: Any, engine: Engine) -> None:
        transactions = self._find_transactions(engine)
        transactions.explicit = True
        undo = partial(setattr, transactions, "explicit", False)  # noqa: FBT003 - has no names
        self._targets[id(target)] = (target, None, undo)

    def _attach_async(self, target: Any) -> tuple[type[Session], Callable[[], None]]:
        # Events cannot be listened to on an async factory, so it gets a Session class of its own.
        before = target.kw.get("sync_session_class")
        base = before or getattr(target.class_, "sync_session_class", Session)
        logged = type(f"Logged{base.__name__}", (base,), {})
        target.configure(sync_session_class=logged)
        self._listen(logged)

        def undo() -> None:
            self._unlisten(logged)
            if before is None:
                target.kw.pop("sync_session_class", None)
            else:
                target.configure(sync_session_class=before)

        return logged, undo

    def _listen(self, target: Any) -> None:
        for name in _EVENTS:
            event.listen(target, name, getattr(self, f"_on_{name}"), insert=name in _FIRST)

    def _unlisten(self, target: Any) -> None:
        for name in _EVENTS:
            event.remove(target, name, getattr(self, f"_on_{name}"))

    # -- for the facade -------------------------------------------------------------------

    def annotate(self, session: Session | Connection, metadata: Mapping[str, list[str]]) -> None:
        """Describe the session's transaction; kept until it has a connection."""
        if isinstance(session, Connection):
            self._find_own(session)[1].annotate(metadata)
            return
        self._check_attached(session)
        self._describe(self._state(session), session.get_nested_transaction(), metadata)

    @staticmethod
    def _describe(
        state: SessionState,
        savepoint: SessionTransaction | None,
        metadata: Mapping[str, list[str]],
    ) -> None:
        if savepoint in state.begun or (savepoint is None and state.enlisted):
            for one in state.enlisted:
                one.recorder.annotate(metadata)
        else:
            state.pending.setdefault(savepoint, {}).update(metadata)

    def list_receipts(self, session: Session | Connection) -> list[Receipt]:
        """Receipts of the session's last commit."""
        if isinstance(session, Connection):
            return list(self._find_transactions(session.engine).receipts.get(session, ()))
        self._check_attached(session)
        return list(self._state(session).receipts)

    def _find_own(self, connection: Connection) -> tuple[Transactions, Recorder]:
        """For a transaction that an attached engine's connection began without a session."""
        transactions = self._find_transactions(connection.engine)
        logged = transactions.explicit or transactions.users
        if not logged or not connection.in_transaction():
            raise ConfigurationError(
                "this connection is in no transaction that is logged",
                hint="attach its engine, and begin a transaction first",
            )
        return transactions, transactions.open(connection)

    def find_recorder(self, session: Session | Connection) -> tuple[Connection, Recorder]:
        """The session's connection and recorder; begins its transaction if it has none."""
        one = self.enlist(session)
        one.transactions.database.bind(one.connection, one.recorder)
        return one.connection, one.recorder

    def enlist(self, session: Session | Connection) -> Enlisted:
        """The same, without asking the database anything but to begin."""
        if isinstance(session, Connection):
            return Enlisted(session, *self._find_own(session))
        self._check_attached(session)
        return self.find_enlisted(session, session.connection())

    def find_enlisted(self, session: Session, connection: Connection) -> Enlisted:
        """What is kept for a connection that the session has begun on."""
        for one in self._state(session).enlisted:
            if one.connection is connection:
                return one
        raise ConfigurationError(
            "this session began its transaction before it was attached to the log",
            hint="call log.attach(...) when the application starts",
        )

    def mark_repeated(self, session: Session) -> None:
        """The session's transaction is a run's, which may run it again."""
        self._state(session).repeats = True

    def check_clean(self, connection: Connection) -> None:
        """Raise `ConfigurationError` if the connection's transaction has changes to log yet."""
        for transactions in list(self._engines.values()):
            if transactions.is_dirty(connection):
                raise ConfigurationError(
                    "this transaction changed rows that are logged when it commits: adopted "
                    "now, they would be in the log as if they changed after that",
                    hint="commit the changes first, and adopt in a transaction after it",
                )

    def migrating(self, connection: Connection, live: LiveTables) -> AbstractContextManager[None]:
        """Inside, the guards capture everything that is done on the connection."""
        return self._find_transactions(connection.engine).migrating(connection, live)

    @contextmanager
    def at_work(self, connection: Connection) -> Iterator[None]:
        """Inside, the log writes of itself, after what the transaction did so far."""
        with begin_apart(connection), ExitStack() as stack:
            for transactions in list(self._engines.values()):
                recorder = transactions.find(connection)
                if recorder is not None and not recorder.busy:
                    transactions.settler.settle(connection, recorder)
                    recorder.altered = False
                    stack.enter_context(recorder.at_work())
            yield

    def is_migrating(self, connection: Connection) -> bool:
        """The connection's transaction is one of a migration."""
        found = [transactions.find(connection) for transactions in list(self._engines.values())]
        return any(recorder is not None and recorder.live is not None for recorder in found)

    def _check_attached(self, session: Session) -> None:
        if not self._list_factories(session):
            raise ConfigurationError(
                "this session is not attached to the log",
                hint="call log.attach(...) with its sessionmaker or class first",
            )

    def _list_factories(self, session: Session) -> list[int]:
        return [
            key
            for key, (_, factory, _) in self._targets.items()
            if factory is not None and isinstance(session, factory)
        ]

    def refresh(self) -> None:
        """Forget what is known of every database."""
        for transactions in self._engines.values():
            transactions.database.refresh()

    def _state(self, session: Session) -> SessionState:
        state = self._states.get(session)
        if state is None:
            state = self._states[session] = SessionState()
        return state

    def _find_transactions(self, engine: Engine) -> Transactions:
        engine = find_proxied(engine)
        found = self._engines.get(engine)
        if found is None:
            # If two threads' first transactions both listened, each change would be logged twice.
            with self._lock:
                found = self._engines.get(engine)
                if found is None:
                    found = self._make_transactions(engine)
                    EngineListener(found).listen()
                    self._engines[engine] = found
        return found

    # -- session events -------------------------------------------------------------------

    def _on_after_begin(
        self, session: Session, transaction: SessionTransaction, connection: Connection
    ) -> None:
        if find_engine(connection) is None:
            # A stand-in for a connection, as tests use: there are no events to listen to.
            return
        state = self._state(session)
        transactions = self._find_transactions(connection.engine)
        recorder = transactions.open(connection, owned=True)
        recorder.repeats = state.repeats
        transactions.users.update(self._list_factories(session))
        if not any(one.connection is connection for one in state.enlisted):
            recorder.sessions, earlier = recorder.sessions + 1, len(recorder.receipts)
            state.enlisted.append(Enlisted(connection, transactions, recorder, earlier))
        if state.announced:
            recorder.end.write_others = partial(self._write_others, state)
        savepoint = transaction if transaction.nested else None
        if savepoint is not None:
            state.begun.add(savepoint)
        recorder.annotate(state.pending.get(savepoint, {}))

    def _on_before_commit(self, session: Session) -> None:
        if session.in_nested_transaction():
            return
        state = self._state(session)
        state.announced = state.flushes_last = True
        for one in state.enlisted:
            one.recorder.end.write_others = partial(self._write_others, state)
        if isinstance(session.bind, Connection):
            session.flush()
            self._write_others(state, None)

    @staticmethod
    def _write_others(state: SessionState, connection: Connection | None) -> None:
        """Write the entries of the session's connections but this one, before the first COMMIT."""
        for one in list(state.enlisted):
            if one.connection is not connection and not one.recorder.end.announced:
                one.transactions.write_entries(one.connection, one.recorder)

    def _on_after_flush_postexec(self, session: Session, flush_context: Any) -> None:
        state = self._state(session)
        if state.flushes_last:
            state.flushes_last = False
            return
        for one in state.enlisted:
            one.transactions.writer.take_tickets(one.connection, one.recorder)

    def _on_after_commit(self, session: Session) -> None:
        state = self._state(session)
        savepoint = session.get_nested_transaction()
        if savepoint is not None:
            if savepoint not in state.begun and savepoint in state.pending:
                outer = savepoint.parent if savepoint.parent and savepoint.parent.nested else None
                self._describe(state, outer, state.pending.pop(savepoint))
            return
        state.receipts = []
        confirmed = True
        # In a transaction that goes on nobody announced a COMMIT.
        self._write_others(state, None)
        for one in state.enlisted:
            claim = one.recorder.end.final_claim or one.recorder.claim
            receipts = one.recorder.receipts[one.earlier :]
            state.receipts += receipts or (claim.receipts if claim else ())
            confirmed = confirmed and not one.transactions.is_unconfirmed(
                one.connection, one.recorder
            )
        if not confirmed:
            state.receipts = mark_unconfirmed(state.receipts)
            warn_unconfirmed()

    def _on_after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        state = self._state(session)
        if transaction.parent is not None:
            state.begun.discard(transaction)
            state.pending.pop(transaction, None)
            return
        for one in state.enlisted:
            one.transactions.leave(one.connection)
        state.enlisted.clear()
        state.begun.clear()
        state.pending.clear()
        state.announced = state.flushes_last = state.repeats = False
