"""Values as psycopg sends them: taken out of its wrappers, and JSON as its serializer wrote it.

Nothing else knows the text of a JSON parameter: serializers differ, and may give another text
each time. So a document is watched from before its statement is sent until after it. Values of a
type that the application adapts with a dumper or loader of its own are told apart: they may be
sent, or come from, anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from psycopg import Binary, ProgrammingError, pq
from psycopg.adapt import AdaptersMap, PyFormat
from psycopg.types.json import Json, Jsonb, JsonbBinaryDumper, JsonDumper
from sqlalchemy.engine import Connection

from oplog.value.json_text import JsonText

_OWN: Final = frozenset({"psycopg", "psycopg_binary", "psycopg_c"})
"""The driver's packages."""
_MODIFIERS: Final = re.compile(r"\([0-9, -]+\)")
_PLAIN_DUMPS: Final = frozenset({JsonDumper.dump, JsonbBinaryDumper.dump})
"""How dumpers send exactly what the serializer returned."""


class _Watch:
    """A serializer that keeps what it returned."""

    __slots__ = ("_ascii_only", "_data", "_dumps", "_times")

    def __init__(self, dumps: Callable[[Any], str | bytes], *, ascii_only: bool) -> None:
        self._dumps = dumps
        self._ascii_only = ascii_only
        self._data: object = None
        self._times = 0

    def __call__(self, document: Any) -> str | bytes:
        data = self._dumps(document)
        if not self._times or self._data != data:
            self._times += 1
        self._data = data
        return data

    @property
    def text(self) -> JsonText | None:
        """What was sent; None if that is not certain."""
        data = self._data
        if type(data) is bytes:
            try:
                data = data.decode()
            except UnicodeDecodeError:
                return None
        if type(data) is not str or self._times != 1 or (self._ascii_only and not data.isascii()):
            return None
        return JsonText(data)


def watch_documents(connection: Connection, values: Iterable[object]) -> None:
    """Have the text of these parameters kept when psycopg serializes them."""
    raw: Any = connection.connection.driver_connection
    report = raw.info.parameter_status
    # In another encoding keys have other lengths, and by them jsonb orders them.
    if report("server_encoding") != "UTF8":
        return
    # psycopg writes JSON in UTF-8 in any case; the server reads it in the client's encoding.
    ascii_only = report("client_encoding") != "UTF8"
    serializers: dict[type, Callable[[Any], str | bytes] | None] = {}
    for document in _list_documents(values):
        kind = type(document)
        if kind not in serializers:
            serializers[kind] = _find_serializer(raw.adapters, kind)
        dumps = serializers[kind]
        # With a serializer of its own it is the application's object, which stays as it is.
        if dumps is not None and document.dumps is None:
            document.dumps = _Watch(dumps, ascii_only=ascii_only)


def _list_documents(values: Iterable[object]) -> Iterable[Json | Jsonb]:
    for value in values:
        if type(value) is Jsonb or type(value) is Json:
            yield value
        elif type(value) is list:
            yield from _list_documents(value)


def _find_serializer(adapters: AdaptersMap, kind: type) -> Callable[[Any], str | bytes] | None:
    """What psycopg serializes these documents with; None if more is done to them."""
    dumper: Any = adapters.get_dumper(kind, PyFormat.AUTO)
    if getattr(dumper, "dump", None) not in _PLAIN_DUMPS:
        return None
    serializer: Callable[[Any], str | bytes] = dumper(kind).dumps
    return serializer


def unwrap(value: object) -> object:
    """A parameter without psycopg's wrapper; a JSON document becomes the text that was sent."""
    kind = type(value)
    if kind is Jsonb or kind is Json:
        watch = value.dumps  # type: ignore[attr-defined]
        text = watch.text if type(watch) is _Watch else None
        return value if text is None else text
    if kind is Binary:
        data = value.obj  # type: ignore[attr-defined]
        return bytes(data) if type(data) is bytearray else data
    if kind is list:
        return [unwrap(item) for item in value]  # type: ignore[attr-defined]
    return value


def find_foreign(connection: Connection, values: Sequence[object]) -> frozenset[type]:
    """The types among these parameters that psycopg does not adapt by itself.

    Not JSON: `watch_documents` decides that.
    """
    kinds = {type(value) for value in values} - {Json, Jsonb}
    raw: Any = connection.connection.driver_connection
    foreign = {kind for kind in kinds if kind is not list and _is_foreign(raw.adapters, kind)}
    if list in kinds:
        inner = [item for value in values if type(value) is list for item in value]
        if find_foreign(connection, inner):
            foreign.add(list)
    return frozenset(foreign)


def _is_foreign(adapters: AdaptersMap, kind: type) -> bool:
    try:
        dumper = adapters.get_dumper(kind, PyFormat.AUTO)
    except ProgrammingError:
        return True
    return dumper.__module__.partition(".")[0] not in _OWN


def name_loaded(pg_type: str) -> str:
    """The name under which the driver knows a type, whatever its modifiers are."""
    return _MODIFIERS.sub("", pg_type)


def is_read_plainly(connection: Connection, loaded: str) -> bool:
    """What psycopg returns for a value of the type is not made by a loader of the application's.

    `loaded` is what `name_loaded` gives for the type.
    """
    raw: Any = connection.connection.driver_connection
    info = raw.adapters.types.get(loaded)
    loader = None if info is None else raw.adapters.get_loader(info.oid, pq.Format.TEXT)
    return loader is None or loader.__module__.partition(".")[0] in _OWN
