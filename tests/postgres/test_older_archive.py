"""An archive that lost its newest heads, and says so itself: `LATEST` names more than there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, Engine

from oplog import Archive
from oplog.archive.format.path import LATEST, name_head
from oplog.cli import main
from oplog.errors import HeadRolledBackError
from tests.postgres.archived import dump_objects, open_memory, reopen, restore_into
from tests.postgres.keeping import add_task, harmful, write_row
from tests.postgres.keeping import read_row as read_receipt
from tests.postgres.replay_models import Bench, make_bench
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def archive(bench: Bench) -> Archive:
    """Three heads, of which the newest is gone and is nowhere but in the hint."""
    archive = open_memory()
    for number in range(3):
        bench.write(add_task)
        row = read_receipt(bench) if number == 2 else ""
        bench.log.sync(bench.engine, archive)
    archive.store.delete(name_head(3))
    # As after a crash, or a failover: the receipt for it is lost, too.
    write_row(bench, row)
    return reopen(archive)


def accept(archive: Archive) -> Archive:
    again = reopen(archive)
    again.accept_older = True
    return again


def test_check_tells(bench: Bench, archive: Archive) -> None:
    for report in (bench.log.check(archive), bench.log.check(archive, bench.engine)):
        assert not report.ok
        assert [(one.path, one.what) for one in harmful(report)] == [(LATEST, "behind")]
        assert (
            "names head 3, and the newest that can be read is head 2" in report.problems[0].message
        )
        # What is there was looked at all the same.
        assert (report.head, report.entries) == (2, 2)


def test_readers_and_restore_stop(bench: Bench, spare_engine: Engine, archive: Archive) -> None:
    target = make_target(spare_engine, bench)
    with pytest.raises(HeadRolledBackError, match="names head 3"):
        restore_into(target, archive)
    with pytest.raises(HeadRolledBackError, match="names head 3"):
        target.log.recover(archive, target.engine)
    with target.engine.connect() as connection:
        with pytest.raises(HeadRolledBackError, match="names head 3"):
            target.log.follow(archive, connection)
        connection.rollback()
        with pytest.raises(HeadRolledBackError, match="names head 3"):
            target.log.open_source(archive)
    with (
        bench.engine.connect() as connection,
        pytest.raises(HeadRolledBackError, match="names head 3"),
    ):
        list(bench.log.read(connection, archive=archive))
    assert restore_into(target, accept(archive)).entries == 2


def test_a_worker_does_not_put_another_head_in_the_gap(bench: Bench, archive: Archive) -> None:
    before = dump_objects(archive)
    for _ in range(2):
        with pytest.raises(HeadRolledBackError, match="names head 3"):
            bench.log.sync(bench.engine, archive)
        bench.write(add_task)
    report = bench.log.resync(bench.engine, archive)
    assert (report.ok, report.repaired) == (False, ())
    assert dump_objects(archive) == before


def test_who_has_looked_goes_on(bench: Bench, archive: Archive) -> None:
    assert bench.log.sync(bench.engine, accept(archive)).entries == 1
    assert bench.log.check(reopen(archive), bench.engine).ok
    bench.write(add_task)
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 1


def test_with_nothing_new_the_hint_is_put_right(bench: Bench) -> None:
    archive = open_memory()
    bench.write(add_task)
    bench.log.sync(bench.engine, archive)
    sound = archive.store.get(LATEST, most=100)
    archive.store.put(LATEST, f"{0:016x}\n{9:016x}\n".encode())
    with pytest.raises(HeadRolledBackError, match="names head 9"):
        bench.log.sync(bench.engine, reopen(archive))
    assert bench.log.sync(bench.engine, accept(archive)).entries == 0
    assert archive.store.get(LATEST, most=100) == sound
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 0


def test_the_database_is_believed_before_the_operator(bench: Bench) -> None:
    """What was acknowledged is not given up by a word."""
    archive = open_memory()
    for _ in range(3):
        bench.write(add_task)
        bench.log.sync(bench.engine, archive)
    archive.store.delete(name_head(3))
    with pytest.raises(HeadRolledBackError, match="the database has published head 3"):
        bench.log.sync(bench.engine, accept(archive))


def test_on_the_command_line(
    engine: Engine,
    database_url: URL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "plain.py").write_text(
        "from oplog import Oplog, TypeCatalog\nlog = Oplog(TypeCatalog(), plaintext=True)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    url = f"file://{tmp_path}/archive"
    common = [
        "--app",
        "plain:log",
        "--database",
        database_url.render_as_string(hide_password=False),
    ]
    common += ["--archive", url]
    bench = make_bench(engine)
    bench.write(add_task)
    assert main([*common, "sync"]) == 0
    hint = tmp_path / "archive" / LATEST
    hint.write_bytes(f"{0:016x}\n{7:016x}\n".encode())
    capsys.readouterr()
    assert main([*common, "check", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["problems"][0]["what"] == "behind"
    assert main([*common, "sync"]) == 3
    told = capsys.readouterr().err
    assert "head 7" in told
    assert "head 1" in told
    assert "--accept-older" in told
    assert main([*common, "sync", "--accept-older"]) == 0
    assert main([*common, "check"]) == 0
