"""The part of `Oplog` that finds changes by what they did: who set this column to that value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.doctor.inspection import read_value
from oplog.entry import OpType
from oplog.errors import ConfigurationError
from oplog.facade.entries_part import flatten_metadata
from oplog.facade.given_target import Readable, open_connection, open_source
from oplog.facade.log_parts import LogParts
from oplog.facade.reading_part import Reading
from oplog.payload.shape import Shape
from oplog.reading.given_place import find_place
from oplog.reading.log_opener import LogOpener
from oplog.reading.model_tables import check_model_tables, choose_model_types
from oplog.reading.reader import RecordReader
from oplog.reading.row_identity import find_table_types
from oplog.search.found_change import SearchPage
from oplog.search.question import ANY, Question
from oplog.search.search_index import SearchIndex, make_index
from oplog.search.search_run import ScanProgress, SearchLimits, SearchRun
from oplog.search.stage import plan_stages
from oplog.store import EntryFilter

SCAN_LIMIT = 100_000
"""Most records that one search opens, unless it says otherwise."""


@dataclass(frozen=True)
class SearchTask:
    """The arguments of a search, checked as far as they can be without the log."""

    model: Any
    question: partial[Question]
    filter: EntryFilter
    places: tuple[int | datetime | None, int | datetime | None]
    limits: SearchLimits
    cursor: str | None
    index: bool
    progress: ScanProgress | None


class Searching:
    """Questions to the whole log, answered newest first."""

    def __init__(self, log: LogParts, *, reading: Reading) -> None:
        self._log = log
        self._reading = reading

    def search(
        self,
        connection: Readable | None,
        *,
        type: Any = None,
        column: str | None = None,
        to: Any = ANY,
        before: Any = ANY,
        actor: str | None = None,
        kind: OpType | str | None = None,
        aggregate: str | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        after: int | datetime | None = None,
        through: int | datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
        scan_limit: int | None = SCAN_LIMIT,
        index: bool = True,
        progress: ScanProgress | None = None,
        archive: Archive | None = None,
    ) -> SearchPage:
        """Changes that fit all conditions, newest first, at most `limit` of them.

        `type` is a mapped class, a `Table` or a type name. `column` keeps changes that set it, `to`
        those that set it to this value, `before` those that replaced this value, deletions too;
        None means NULL. `kind` is an `OpType` or its name, `actor` is short for
        `metadata={"actor": ...}`, other bounds are as for `read`. Columns have the names of now.

        Values are sealed: the records that metadata and aggregate leave are opened one by one, at
        most `scan_limit` (None for all). `progress` is called with their number and the position
        reached. Of a column that is `searchable` in the catalog, an index says which records have
        the value `to`, unless `index=False`. The page's `cursor`, given back with the same
        arguments, goes on where the page or the scan ended; None says that all was searched. Raises
        `ConfigurationError` for a column that the type does not have or a value that it cannot
        hold, and `UnknownTypeError`.
        """
        pairs = flatten_metadata(metadata)
        pairs += flatten_metadata({} if actor is None else {"actor": actor})
        task = SearchTask(
            model=type,
            question=partial(Question, column=column, to=to, before=before, kind=read_kind(kind)),
            filter=EntryFilter(aggregate, pairs),
            places=(after, through),
            limits=SearchLimits(limit, scan_limit),
            cursor=cursor,
            index=index,
            progress=progress,
        )
        with open_source(connection, self._log.catalog) as inside:
            return self._search(inside, task, self._reading.make_opener(archive=archive))

    def _search(self, inside: Connection | None, task: SearchTask, opener: LogOpener) -> SearchPage:
        def open_reader() -> RecordReader:
            return opener.open(inside, stepping=task.model is None, whole=False)

        reader = open_reader()
        snapshot = reader.source.read_snapshot()
        types = self._find_types(reader, inside, task, snapshot=snapshot)
        question = task.question(types)
        after, through = (find_place(reader, one, snapshot=snapshot) for one in task.places)
        if types == {}:
            return SearchPage()
        index = self._find_index(inside, task, reader, question=question)
        run = SearchRun(
            aim_reader(reader, types, opener),
            question,
            limits=task.limits,
            open_again=lambda: aim_reader(open_reader(), types, opener),
            index=index,
            progress=task.progress,
        )
        stages = plan_stages(
            task.filter.narrow(after, through),
            task.cursor,
            index=index,
            reader=reader,
            snapshot=snapshot,
        )
        page = run.run(stages, snapshot=snapshot)
        if task.model is not None and not isinstance(task.model, str):
            declared = choose_model_types(self._log.catalog, inside, task.model)
            check_model_tables(inside, declared, reader)
        return page

    def read_value(self, connection: Readable, model: Any, *, column: str, text: str) -> object:
        """A column's value from text as people write it, for `search`.

        The text is read by the column's own input function. Raises `ConfigurationError` for a
        column that the table does not have, and for text that is no value of it.
        """
        with open_connection(connection, self._log.catalog) as inside:
            self._log.store.require_current(inside)
            types = choose_model_types(self._log.catalog, inside, model)
            tables = [one.table for one in types]
            having = [table for table in tables if column in table.columns]
            return read_value(inside, (having or tables)[0], column=column, text=text)

    def _find_index(
        self,
        inside: Connection | None,
        task: SearchTask,
        reader: RecordReader,
        *,
        question: Question,
    ) -> SearchIndex | None:
        """The index for what is looked for, where every table with the column has one."""
        catalog, keyring = self._log.catalog, self._log.keyring
        # A step may make another value of what the tokens were made of.
        if not task.index or keyring is None or not question.types or catalog.has_steps:
            return None
        if isinstance(task.model, str) and task.model not in catalog.types:
            return None
        declared = choose_model_types(catalog, inside, task.model)
        having = [one for one in declared if str(question.column) in one.table.columns]
        if not having or any(question.column not in one.searchable for one in having):
            return None
        return make_index(keyring, reader, question, question.types)

    def _find_types(
        self,
        reader: RecordReader,
        inside: Connection | None,
        task: SearchTask,
        *,
        snapshot: str,
    ) -> dict[str, Shape] | None:
        """By the log's names, the newest revisions of the types that are searched."""
        model, column = task.model, task.question.keywords["column"]
        if model is None:
            return None
        if isinstance(model, str) and model not in self._log.catalog.types:
            shape = reader.types.latest.get(model)
            if shape is not None:
                return {model: shape}
        found: dict[str, Shape] = {}
        for declared in choose_model_types(self._log.catalog, inside, model):
            _, known = find_table_types(reader, declared, snapshot=snapshot)
            found |= {name: shapes[-1] for name, shapes in known.items()}
        # With joined inheritance, each table has some of the columns.
        having = {name: shape for name, shape in found.items() if column in shape.codecs}
        return having or found


def aim_reader(
    reader: RecordReader, types: Mapping[str, Shape] | None, opener: LogOpener
) -> RecordReader:
    """The same reader, which shows rows of these types with the columns of now."""
    if types is not None:
        revisions = {name: shape.revision for name, shape in types.items()}
        reader.read_as(revisions, opener.make_steps(reader))
    return reader


def read_kind(kind: OpType | str | None) -> OpType | None:
    """A kind as callers give it; `ConfigurationError` for another word."""
    if kind is None or isinstance(kind, OpType):
        return kind
    try:
        return OpType[kind.upper()]
    except (AttributeError, KeyError) as cause:
        raise ConfigurationError(
            f"{kind!r:.40} is no kind of change",
            hint='give "create", "update" or "delete", or an OpType',
        ) from cause
