"""How often the ways into a log ask the database, statement by statement."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog.postgres.work import Driver
from tests.postgres.archived import open_memory, reopen
from tests.postgres.pruned import open_plain, sync
from tests.postgres.replay_models import Bench, Task, make_bench

pytestmark = pytest.mark.postgres

NAMES = {
    "links": r"^WITH pruned AS",
    "version and home": r"obj_description\(.*pg_control_system\(\) c",
    "archives": r"FROM .*oplog_archive\b",
    "log id": r"^SELECT log_id FROM",
    "keys": r"^SELECT key_id, check_value FROM",
    "types": r"FROM .*oplog_type t",
    "snapshot": r"pg_current_snapshot\(\)::text END",
    "pruned": r"FROM .*oplog_pruned",
    "adoptions": r"^SELECT x\.aggregate_name, r\.position, r\.metadata",
    "news": r"^SELECT min\(n\.position\)",
    "marks": r"^SELECT r\.position, r\.record_id",
    "records": r"^SELECT (p\.)?\* FROM \(SELECT r\.position",
    "parts": r"FROM .*oplog_part\b",
    "partitions": r"to_regclass\(pg_catalog\.concat\(.*oplog_record r WHERE false",
    "server": r"^SELECT system_identifier::text FROM",
    "settings": r"set_config|current_setting|SET LOCAL|SET TRANSACTION",
    "guards": r"^SELECT g\.tgrelid::bigint",
    "standby": r"^SELECT pg_catalog\.pg_is_in_recovery",
    # What the database shows of each table since it was last noted.
    "changes": r"oplog_describe_change\(|^SELECT \(SELECT pg_catalog\.concat\(i\.system_identifier"
    r"|has_function_privilege|to_regtype\(w\.name\)",
    "tables": r"FROM pg_catalog\.(pg_class|pg_attribute|pg_constraint)|oplog_rebuilt|replayed",
}
"""What a statement is for, by how it is written; the first that fits."""
OPENING = ["version and home", "partitions", "pruned", "log id", "keys"]
"""Of reading that needs the whole log, or goes on in an archive."""


def name_statement(statement: str) -> str:
    flat = " ".join(statement.split())
    for name, pattern in NAMES.items():
        if re.search(pattern, flat):
            return name
    return flat[:70]


@contextmanager
def listen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of all statements on the engine's connections, the driver's own included."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(name_statement(statement))

    def spy(method: str) -> None:
        original = getattr(Driver, method)

        def noting(self: Driver, statement: str, *args: Any) -> Any:
            seen.append(name_statement(statement))
            return original(self, statement, *args)

        monkeypatch.setattr(Driver, method, noting)

    sa.event.listen(engine, "before_cursor_execute", note)
    with monkeypatch.context():
        spy("execute")
        spy("query")
        yield seen
    sa.event.remove(engine, "before_cursor_execute", note)


def leave_out(seen: list[str], *names: str) -> list[str]:
    return [name for name in seen if name not in names]


@pytest.fixture
def bench(engine: Engine) -> Bench:
    """Two transactions."""
    made = make_bench(engine)
    made.write(lambda s: s.add(Task(id=1, project="p", title="one")))
    made.write(lambda s: setattr(s.get_one(Task, 1), "title", "two"))
    return made


def test_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_plain(bench.engine)
    with engine.connect() as connection, listen(engine, monkeypatch) as seen:
        assert len(list(bench.log.read(connection))) == 2
    opening = ["version and home", "log id", "keys", "snapshot"]
    # One page of records, and the empty one that is the end.
    assert seen == [*opening, "records", "marks", "types", "records"]


def test_history(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_plain(bench.engine)
    with engine.connect() as connection, listen(engine, monkeypatch) as seen:
        assert len(bench.log.history(connection, Task, 1)) == 2
    opening = [*OPENING, "snapshot", "types"]
    # And whether the connection means another table of the model's name.
    assert seen == [*opening, "records", "marks", "records", "tables"]


def test_replay(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_plain(bench.engine)
    with engine.connect() as connection, listen(engine, monkeypatch) as seen:
        assert bench.log.replay(connection).entries == 2
    opening = [*OPENING, "snapshot", "links", "types"]
    reading = ["adoptions", "records", "marks", "records"]
    assert leave_out(seen, "settings", "tables", "changes") == ["standby", *opening, *reading]


def test_verify(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_plain(bench.engine)
    with engine.connect() as connection, listen(engine, monkeypatch) as seen:
        assert bench.log.verify(connection).ok
    opening = [*OPENING, "snapshot", "links", "types"]
    # For guarded tables that the catalog does not have.
    reading = ["adoptions", "guards", "standby", "records", "marks", "records"]
    assert leave_out(seen, "settings", "tables", "changes") == [*opening, *reading]


def test_read_with_an_archive(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = open_memory()
    sync(bench, archive)
    engine = open_plain(bench.engine)
    with engine.connect() as connection, listen(engine, monkeypatch) as seen:
        assert len(list(bench.log.read(connection, archive=reopen(archive)))) == 2
    joining = ["version and home", "partitions", "archives", "pruned", "log id", "server"]
    assert seen == [*joining, "keys", "snapshot", "marks", "types", "news", "pruned"]
