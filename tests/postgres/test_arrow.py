"""Entries and changes as Arrow batches: exact, typed, bounded, and on to files and data frames."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog.arrow import (
    changes_of,
    read_batches,
    rows_of,
    to_pandas,
    to_polars,
    to_table,
    write_parquet,
)
from oplog.errors import ConfigurationError
from tests.databases import Cluster, FreshDatabase
from tests.logged import LoggedDatabase, open_logged
from tests.postgres.archived import open_memory, publish, reopen

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Sample(Base):
    __tablename__ = "sample"
    id: Mapped[int] = mapped_column(primary_key=True)
    small: Mapped[int | None] = mapped_column(sa.SmallInteger)
    large: Mapped[int | None] = mapped_column(sa.BigInteger)
    flag: Mapped[bool | None]
    ratio: Mapped[float | None] = mapped_column(postgresql.DOUBLE_PRECISION)
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(38, 10))
    wide: Mapped[Decimal | None] = mapped_column(sa.Numeric(60, 2))
    free: Mapped[Decimal | None] = mapped_column(sa.Numeric)
    blob: Mapped[bytes | None]
    day: Mapped[dt.date | None]
    at: Mapped[dt.datetime | None] = mapped_column(sa.DateTime(timezone=True))
    local: Mapped[dt.datetime | None] = mapped_column(sa.DateTime)
    clock: Mapped[dt.time | None]
    span: Mapped[dt.timedelta | None] = mapped_column(postgresql.INTERVAL)
    ref: Mapped[UUID | None]
    data: Mapped[Any] = mapped_column(postgresql.JSONB, nullable=True)
    tags: Mapped[list[str] | None] = mapped_column(postgresql.ARRAY(sa.Text))
    text: Mapped[str | None]


VALUES: dict[str, Any] = {
    "small": -5,
    "large": 2**62,
    "flag": True,
    "ratio": 0.1,
    "price": Decimal("1234567890123456789012345678.0123456789"),
    "wide": Decimal("9" * 58 + ".99"),
    "free": Decimal("123456789012345678901234567890.1234567890123456789012345"),
    "blob": b"\xff\x00",
    "day": dt.date(2025, 1, 31),
    "at": dt.datetime(2025, 1, 31, 12, 0, 0, 5, tzinfo=dt.UTC),
    "local": dt.datetime(2025, 1, 31, 12),
    "clock": dt.time(12, 30, 0, 7),
    "span": dt.timedelta(days=1, seconds=5),
    "ref": UUID(int=5),
    "data": {"n": 1.10, "a": ["x"]},
    "tags": ["a", "b c"],
    "text": "snow \u2603",
}
ROWS = 25


@pytest.fixture(scope="module")
def db(cluster: Cluster) -> Iterator[LoggedDatabase]:
    database = FreshDatabase(cluster)
    engine = database.make_engine()
    db = open_logged(engine, Base, seed="")
    with db.sessions.begin() as session:
        db.log.annotate(session, actor=["ann", "bob"])
        session.add(Sample(id=1, **VALUES))
    with db.sessions.begin() as session:
        session.add_all(Sample(id=number, text=str(number)) for number in range(2, ROWS + 1))
    with db.sessions.begin() as session:
        one = session.get_one(Sample, 1)
        one.price, one.text = Decimal("0.5"), None
        session.delete(session.get_one(Sample, 2))
    yield db
    engine.dispose()
    database.drop()


@pytest.fixture
def connection(db: LoggedDatabase) -> Iterator[Connection]:
    with db.engine.connect() as connection:
        yield connection


def test_values_are_typed_and_exact(db: LoggedDatabase, connection: Connection) -> None:
    table = to_table(changes_of(db.log, connection, Sample))
    first = table.slice(0, 1).to_pylist()[0]
    as_text = {
        "free": str(VALUES["free"]),
        "span": "1 day 00:00:05",
        "ref": str(VALUES["ref"]),
        "data": '{"a": ["x"], "n": 1.1}',
        "tags": '{a,"b c"}',
    }
    assert {name: first[name] for name in VALUES} == {**VALUES, **as_text}
    types = {field.name: field.type for field in table.schema}
    assert types["price"] == pa.decimal128(38, 10)
    assert types["wide"] == pa.decimal256(60, 2)
    assert types["free"] == pa.string()
    assert types["at"] == pa.timestamp("us", tz="UTC")
    assert types["small"] == pa.int16()
    assert first["log_metadata"] == [("actor", ["ann", "bob"])]


def test_a_change_says_what_it_wrote(db: LoggedDatabase, connection: Connection) -> None:
    rows = to_table(changes_of(db.log, connection, "sample")).to_pylist()
    entries = db.read()
    assert len(rows) == sum(len(entry.operations) for entry in entries) == ROWS + 2
    deleted, updated = sorted(rows[-2:], key=lambda row: row["log_kind"])
    assert (updated["log_kind"], updated["id"]) == ("update", 1)
    assert sorted(updated["log_written"]) == ["price", "text"]
    assert (updated["price"], updated["text"], updated["large"]) == (Decimal("0.5"), None, None)
    assert (deleted["log_kind"], deleted["id"], deleted["log_written"]) == ("delete", 2, [])
    assert {row["log_position"] for row in rows} == {entry.position for entry in entries}
    assert {row["log_entry_id"] for row in rows} == {str(entry.entry_id) for entry in entries}
    assert updated["log_recorded_at"] == entries[-1].recorded_at


def test_entries_are_rows_with_json(db: LoggedDatabase, connection: Connection) -> None:
    batches = read_batches(db.log, connection, rows=10)
    rows = [row for batch in batches for row in batch.to_pylist()]
    entries = db.read()
    told = [(entry, one) for entry in entries for one in entry.operations]
    assert len(rows) == len(told)
    for row, (entry, one) in zip(rows, told, strict=True):
        said = {**one.to_json(), "key": json.loads(row["key"])}
        assert (row["kind"], row["type"]) == (said["kind"], said["type"])
        assert json.loads(row["fields"]) == said["fields"]
        assert (row["aggregate"], row["version"]) == (entry.aggregate, entry.version)
        assert dict(row["metadata"]) == entry.metadata
    assert rows[0]["recorded_at"] == entries[0].recorded_at


def test_batches_are_bounded_and_filters_hold(db: LoggedDatabase, connection: Connection) -> None:
    sizes = [batch.num_rows for batch in changes_of(db.log, connection, Sample, rows=10)]
    assert sizes == [10, 10, 7]
    some: Any = {"metadata": {"actor": "bob"}}
    assert to_table(changes_of(db.log, connection, Sample, **some)).num_rows == 1
    assert to_table(read_batches(db.log, connection, **some)).num_rows == 1
    nothing = changes_of(db.log, connection, Sample, after=10**9)
    assert nothing.schema.field("price").type == pa.decimal128(38, 10)
    assert to_table(nothing).num_rows == 0
    assert to_table(read_batches(db.log, connection, aggregate="sample/3")).num_rows == 1


def test_an_archive_gives_the_same(db: LoggedDatabase, connection: Connection) -> None:
    archive = open_memory()
    publish(db.log, db.engine, reopen(archive))
    expected = to_table(changes_of(db.log, connection, Sample)).drop_columns(["log_sequence"])
    found = to_table(changes_of(db.log, None, Sample, archive=reopen(archive)))
    assert found.drop_columns(["log_sequence"]) == expected
    assert found["log_sequence"].null_count == 0


def test_rows_of_a_moment_are_typed_and_exact(db: LoggedDatabase, connection: Connection) -> None:
    first, *_, last = db.read()
    then = to_table(rows_of(db.log, connection, Sample, at=first.position)).to_pylist()
    assert len(then) == 1
    changed = to_table(changes_of(db.log, connection, Sample)).to_pylist()[0]
    assert then[0] == {name: changed[name] for name in then[0]}
    now = to_table(rows_of(db.log, connection, "sample", at=last.position))
    assert now["id"].to_pylist() == [1, *range(3, ROWS + 1)]
    assert now["price"].to_pylist()[0] == Decimal("0.5")
    assert now.schema.field("price").type == pa.decimal128(38, 10)
    assert now.schema.field("wide").type == pa.decimal256(60, 2)


def test_rows_of_a_moment_come_in_batches_from_everywhere(
    db: LoggedDatabase, connection: Connection, tmp_path: Path
) -> None:
    at = db.read()[-1].position
    streamed = rows_of(db.log, db.engine, Sample, at=at, rows=10)
    assert [batch.num_rows for batch in streamed] == [10, 10, 4]
    archive = open_memory()
    publish(db.log, db.engine, reopen(archive))
    here = to_table(rows_of(db.log, connection, Sample, at=at))
    assert to_table(rows_of(db.log, None, Sample, at=at, archive=reopen(archive))) == here
    path = tmp_path / "rows.parquet"
    assert write_parquet(rows_of(db.log, db.engine, Sample, at=at), path) == ROWS - 1
    assert pq.read_table(path) == here
    texts = to_table(rows_of(db.log, connection, Sample, at=at, as_text=["price", "small"]))
    assert texts["price"].to_pylist()[0] == "0.5000000000"
    with pytest.raises(ConfigurationError, match="no logged column"):
        rows_of(db.log, connection, Sample, at=at, as_text=["nothing"])


def test_a_parquet_file_is_whole_or_not_there(
    db: LoggedDatabase, connection: Connection, tmp_path: Path
) -> None:
    path = tmp_path / "changes.parquet"
    assert write_parquet(changes_of(db.log, connection, Sample, rows=10), path) == ROWS + 2
    assert pq.read_table(path) == to_table(changes_of(db.log, connection, Sample))
    assert pq.ParquetFile(path).num_row_groups == 3
    before = path.read_bytes()
    batches = changes_of(db.log, connection, Sample, rows=10)

    def fail(count: int) -> Iterator[Any]:
        for _ in range(count):
            yield next(batches)
        raise KeyError

    broken = type(batches)(batches.schema, fail(1))
    with pytest.raises(KeyError):
        write_parquet(broken, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_data_frames_keep_decimals(db: LoggedDatabase, connection: Connection) -> None:
    frame = to_pandas(changes_of(db.log, connection, Sample))
    assert frame["price"].iloc[0] == VALUES["price"]
    assert frame["large"].dtype == pd.ArrowDtype(pa.int64())
    assert frame["large"].iloc[0] == 2**62


def test_polars(db: LoggedDatabase, connection: Connection) -> None:
    pytest.importorskip("polars")
    frame = to_polars(changes_of(db.log, connection, Sample, as_text=["wide"]))
    assert frame["price"][0] == VALUES["price"]


def test_what_a_type_cannot_hold_is_said(db: LoggedDatabase, connection: Connection) -> None:
    with db.sessions.begin() as session:
        session.add(Sample(id=98, price=Decimal("NaN")))
    try:
        with pytest.raises(ConfigurationError, match="price") as caught:
            to_table(changes_of(db.log, connection, Sample))
        assert "as_text=['price']" in caught.value.hint
        rows = to_table(changes_of(db.log, connection, Sample, as_text=["price", "day"]))
        assert rows["price"].to_pylist()[-1] == "NaN"
    finally:
        connection.rollback()


def test_what_makes_no_sense_is_refused(db: LoggedDatabase, connection: Connection) -> None:
    for rows in (0, True, "1"):
        with pytest.raises(ConfigurationError, match="rows"):
            read_batches(db.log, connection, rows=rows)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="no logged column"):
        changes_of(db.log, connection, Sample, as_text=["nothing"])
