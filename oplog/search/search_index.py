"""The tokens that a search looks for, if what it asks for is indexed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oplog.crypto.blind_index import BlindIndex, IndexedColumn
from oplog.crypto.keyring import Keyring
from oplog.entry import SEARCH_KEY
from oplog.payload.shape import Shape
from oplog.reading.reader import RecordReader
from oplog.search.question import ANY, Question
from oplog.store import EntryFilter, StoredRecord


@dataclass(frozen=True)
class SearchIndex:
    """Tokens under every key of the ring: what was sealed with an older one is found as well."""

    wanted: frozenset[str]
    """Of the value, and of records that have more values than tokens."""
    columns: frozenset[str]
    """Of all records that have tokens of the column."""

    def narrow(self, wanted: EntryFilter) -> EntryFilter:
        """The filter for records that may have the value, among those with tokens."""
        return EntryFilter(
            aggregate=wanted.aggregate,
            metadata=wanted.metadata,
            after=wanted.after,
            through=wanted.through,
            tagged=(SEARCH_KEY, tuple(sorted(self.wanted))),
        )

    def rules_out(self, stored: StoredRecord) -> bool:
        """Whether a record's tokens say that the value is not in it."""
        tokens = {value for key, value in stored.metadata if key == SEARCH_KEY}
        return not self.columns.isdisjoint(tokens) and self.wanted.isdisjoint(tokens)

    def find_beginning(self, reader: RecordReader, *, snapshot: str) -> int | None:
        """The position of the first record with tokens of the column; None if none has."""
        first = EntryFilter(tagged=(SEARCH_KEY, tuple(sorted(self.columns))))
        for page in reader.source.iterate_pages(
            first, snapshot=snapshot, newest_first=False, expected=1
        ):
            return page[0].position
        return None


def make_index(
    keyring: Keyring, reader: RecordReader, question: Question, types: Mapping[str, Shape]
) -> SearchIndex | None:
    """The index for the value that a question looks for; None if it looks for none."""
    if question.column is None or question.to is ANY:
        return None
    blind = BlindIndex(keyring, reader.source.read_log_id())
    wanted, columns = set[str](), set[str]()
    for shape in types.values():
        column = IndexedColumn(shape.type_name, shape.by_name[question.column].number)
        value = question.name_sought(shape, question.to)
        for key_id in blind.key_ids:
            wanted.add(blind.name_value(key_id, column, value))
            wanted.add(blind.name_many(key_id, column))
            columns.add(blind.name_column(key_id, column))
    return SearchIndex(frozenset(wanted), frozenset(columns))
