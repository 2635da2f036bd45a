"""Runs a search: records newest first, opened one by one, until the page or the scan is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from oplog.entry import Operation
from oplog.errors import ConfigurationError
from oplog.payload.codec import Effect
from oplog.reading.page import PageWish
from oplog.reading.reader import OpenedRecord, RecordReader, group_pairs
from oplog.search.found_change import FoundChange, SearchPage
from oplog.search.question import ANY, Question
from oplog.search.search_index import SearchIndex
from oplog.search.stage import Stage
from oplog.search.value_before import ValueBefore
from oplog.store import StoredRecord
from oplog.store.rows import list_aggregates

ScanProgress: TypeAlias = Callable[[int, int], None]
"""Called with the number of records opened so far, and the position of the last one."""


@dataclass(frozen=True)
class SearchLimits:
    """How many changes a page has, and how many records may be opened for it."""

    changes: int
    records: int | None = None

    def __post_init__(self) -> None:
        for name, given in (("limit", self.changes), ("scan_limit", self.records)):
            # A bool is an int, and a mistake here.
            if type(given) is not int or given < 1:
                if given is None and name == "scan_limit":
                    continue
                raise ConfigurationError(
                    f"{name}={given!r:.40} is not a number from 1 on",
                    hint="give limit=50 or another number of changes, and scan_limit=None to "
                    "open as many records as it takes",
                )


class SearchRun:
    """One page of a search."""

    def __init__(
        self,
        reader: RecordReader,
        question: Question,
        *,
        limits: SearchLimits,
        open_again: Callable[[], RecordReader],
        index: SearchIndex | None = None,
        progress: ScanProgress | None = None,
    ) -> None:
        self._reader = reader
        self._question = question
        self._limits = limits
        self._index = index
        self._progress = progress
        self._before = ValueBefore(open_again, question.column or "")
        self._page = SearchPage()

    def run(self, stages: Iterator[Stage], *, snapshot: str) -> SearchPage:
        """Search stage after stage; the page says where it ended."""
        for stage in stages:
            if not self._search(stage, snapshot):
                break
        return self._page

    def _search(self, stage: Stage, snapshot: str) -> bool:
        """Search one stage; whether the next one may be begun."""
        page, wanted = self._page, list_aggregates(stage.filter)
        wish = PageWish(self._limits.changes, newest_first=True, start=stage.start)
        skipped = 0 if stage.start is None else stage.start.given
        place = stage.start
        for records in self._reader.source.iterate_pages(
            stage.filter,
            snapshot=snapshot,
            newest_first=True,
            expected=wish.expected,
            start=stage.start,
        ):
            for stored in records:
                full = len(page) == self._limits.changes
                if not full and self._index is not None and self._index.rules_out(stored):
                    continue
                if full or page.scanned == self._limits.records:
                    page.complete = full
                    page.cursor = stage.write(place)
                    return False
                opened = self._reader.open(stored, aggregates=wanted)
                page.scanned += 1
                page.reached = stored.position
                place = wish.mark(self._reader.source, stored)
                found = self._list_found(opened, stage)
                for number, change in enumerate(found):
                    if number < skipped:
                        continue
                    if len(page) == self._limits.changes:
                        cut = wish.mark(self._reader.source, stored, given=number)
                        page.cursor = stage.write(cut)
                        return False
                    page.append(change)
                skipped = 0
                if self._progress is not None:
                    self._progress(page.scanned, stored.position)
        return True

    def _list_found(self, opened: OpenedRecord, stage: Stage) -> Iterator[FoundChange]:
        """The changes of a record that fit, newest first."""
        wanted = list_aggregates(stage.filter)
        for effect in reversed(opened.effects):
            if wanted is not None and opened.stored.aggregates[effect.place] not in wanted:
                continue
            if not self._question.takes(effect):
                continue
            before: dict[str, Any] = {}
            if self._question.before is not ANY:
                held = self._before.find(opened, effect)
                if held is None or not self._question.takes_before(effect, held.wire):
                    continue
                column = str(self._question.column)
                codec = effect.shape.codecs[column]
                before = {column: None if held.wire is None else codec.to_python(held.wire)}
            ((_, operation),) = self._reader.list_operations(OpenedRecord(opened.stored, [effect]))
            yield self._make_found(opened.stored, effect, operation, before)

    def _make_found(
        self, stored: StoredRecord, effect: Effect, operation: Operation, before: dict[str, Any]
    ) -> FoundChange:
        return FoundChange(
            position=stored.position,
            sequence=self._reader.source.find_sequence(stored.position),
            aggregate=stored.aggregates[effect.place],
            kind=operation.kind,
            type_name=operation.type_name,
            key=operation.key,
            fields=operation.fields,
            metadata=group_pairs(stored.metadata),
            recorded_at=stored.recorded_at,
            entry_id=stored.record_id,
            before=before,
        )
