"""A large table is logged again in bounded memory, in one transaction as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, Engine, create_engine

from oplog import Keyring, Oplog, TypeCatalog
from tests.concurrency.workload import Base
from tests.refilling import bind, migrate, refill

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[2]
ROWS, WIDTH = 60_000, 1200
MOST_MEGABYTES = 64
"""More than a few chunks take beyond the program itself; all rows take twice that."""


def read_peak() -> int:
    """The most memory that this program has taken, in megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def main() -> None:
    """Log a table again, and say how much more memory that took than a table of few rows."""
    url, keyring, own = sys.argv[1:]
    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.from_file(keyring))
    engine = create_engine(url)
    with engine.begin() as connection:
        small = bind(connection, log, "invoice")
        refill(connection, log, small, own=False)
        large = bind(connection, log, "customer")
    before = read_peak()
    with engine.connect() as connection:
        if own == "no":
            connection.begin()
        report = refill(connection, log, large, own=own == "yes", keep_progress=own == "yes")
        connection.commit()
    print(report.rows, report.entries, read_peak() - before)  # noqa: T201 - its answer


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as on Linux")
@pytest.mark.parametrize("own", ["yes", "no"])
def test_memory_is_bounded(engine: Engine, database_url: URL, tmp_path: Path, own: str) -> None:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.from_file(path))
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        connection.exec_driver_sql(
            f"INSERT INTO customer SELECT n, 'x' FROM generate_series(1, {ROWS}) n"
        )
        connection.exec_driver_sql("INSERT INTO invoice VALUES (1, 1, 1)")
        log.store_types(connection)
    wide = f"rpad(md5(id::text), {WIDTH}, id::text)"
    migrate(engine, log, "customer", f"ALTER TABLE customer ALTER name TYPE text USING {wide}")
    migrate(engine, log, "invoice", "ALTER TABLE invoice ALTER amount TYPE bigint USING amount * 2")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.postgres.test_refill_memory"),
            *(database_url.render_as_string(hide_password=False), str(path), own),
        ],
        cwd=ROOT,
        check=True,
        text=True,
        capture_output=True,
    )
    rows, entries, megabytes = map(int, done.stdout.split())
    assert (rows, entries > ROWS * WIDTH // (8 << 20)) == (ROWS, True)
    assert megabytes < MOST_MEGABYTES


if __name__ == "__main__":
    main()
