"""Who and why for every transaction of a request, a job or a command, without handing it on.

Metadata in force is a context variable: it follows asyncio tasks, `asyncio.to_thread` and the
threads that ASGI frameworks run functions in. `carry_context` takes it into other threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token, copy_context
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeAlias, TypeVar

from oplog.entry import check_metadata
from oplog.errors import ConfigurationError, MissingMetadataError

Metadata: TypeAlias = Mapping[str, str | Iterable[str] | None]
"""Values by key; a key whose value is None is left out."""
Describe: TypeAlias = Callable[[], Metadata]
"""Gives metadata when a transaction commits."""
P = ParamSpec("P")
T = TypeVar("T")

# Only a context variable follows a task; a context variable has to be an object of its module.
_IN_FORCE: ContextVar[tuple[Describe, ...]] = ContextVar("oplog_context", default=())


@contextmanager
def context(describe: Describe | None = None, /, **metadata: str | Iterable[str]) -> Iterator[None]:
    """Put metadata into every record that is written inside, by any log of the process.

    Values are str or lists of str, as those of `Oplog.annotate`; inside, `describe` is called at
    each COMMIT for what is not known earlier. A context inside another one adds to it, and
    replaces the values of keys that both have. What `annotate` says of a transaction goes first.
    Raises `InvalidMetadataError` at once for metadata that cannot be stored, and
    `ConfigurationError` where it is left in another task or thread than it was entered in.
    """
    token = put_in_force(describe, metadata)
    try:
        yield
    except BaseException:
        # The application's error is the news, also where the context is left elsewhere.
        with suppress(ValueError):
            _IN_FORCE.reset(token)
        raise
    _leave(token)


def put_in_force(
    describe: Describe | None, metadata: Mapping[str, str | Iterable[str]]
) -> Token[tuple[Describe, ...]]:
    """Begin a context that ends with the copy of the thread's or task's context it is put into."""
    checked = {key: tuple(check_metadata(key, value)) for key, value in metadata.items()}
    added = [describe] if describe is not None else []
    if checked:
        added.append(lambda: checked)
    return _IN_FORCE.set((*_IN_FORCE.get(), *added))


def _leave(token: Token[tuple[Describe, ...]]) -> None:
    try:
        _IN_FORCE.reset(token)
    except ValueError as cause:
        raise ConfigurationError(
            "a context of metadata was entered in one task or thread and left in another: what was "
            "written in between does not have it",
            hint="enter it in a middleware or in an async function; a generator that a framework "
            "runs in its threads may be entered and left in two of them",
        ) from cause


def current_context() -> dict[str, list[str]]:
    """The metadata in force here, such as to send it along with a job: `context(**sent)`."""
    found: dict[str, list[str]] = {}
    for describe in _IN_FORCE.get():
        found |= _check(describe())
    return found


def carry_context(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, to be called in another thread with the metadata that is in force here."""
    here = copy_context()

    @wraps(function)
    def carried(*args: P.args, **kwargs: P.kwargs) -> T:
        # A context cannot be entered twice at once, and the function may run in many threads.
        return here.copy().run(function, *args, **kwargs)

    return carried


@dataclass(frozen=True, slots=True)
class Describer:
    """What a log adds to the metadata of a transaction, and which keys it insists on."""

    provide: Describe | None = None
    require: tuple[str, ...] = ()

    def complete(self, given: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """The pairs of a transaction with those in force, and those that the log provides.

        Of a key that several give, the transaction's values count, then those in force.
        """
        if self.provide is None and not _IN_FORCE.get():
            return given
        found = {} if self.provide is None else _check(self.provide())
        found |= current_context()
        for key, _ in given:
            found.pop(key, None)
        return [*given, *((key, value) for key, values in found.items() for value in values)]

    def check(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Raise `MissingMetadataError` if a key that is required is not there."""
        missing = [key for key in self.require if all(key != known for known, _ in metadata)]
        if missing:
            raise MissingMetadataError(
                f"the transaction says nothing of {', '.join(missing)}, which this log requires",
                hint=f"give {missing[0]} to log.annotate(session, ...), to oplog.context(...), or "
                "by the callable of Oplog(context=...)",
            )


def make_describer(provide: Describe | None, require: str | Iterable[str]) -> Describer:
    """What is given to `Oplog(context=..., require=...)`."""
    if isinstance(require, str):
        raise ConfigurationError(
            f"require is a str: {require!r:.60}", hint=f"give a tuple of keys: ({require!r:.60},)"
        )
    keys = tuple(require)
    for key in keys:
        check_metadata(key, "any")
    return Describer(provide, keys)


def _check(metadata: Metadata) -> dict[str, list[str]]:
    return {key: check_metadata(key, value) for key, value in metadata.items() if value is not None}
