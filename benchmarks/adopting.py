"""Speed of adopting a table that is older than the log, beside COPY TO of the same table."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Keyring, Oplog, TypeCatalog
from oplog.schema.tables import create_statements

METADATA = sa.MetaData()
sa.Table(
    "payment",
    METADATA,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("memo", sa.Text),
    sa.Column("amount", sa.Numeric(12, 2)),
    sa.Column("made_at", sa.DateTime(timezone=True)),
    sa.Column("settled", sa.Boolean),
    sa.Column("account", sa.Integer),
)


def fill_table(engine: Engine, rows: int) -> None:
    """Rows of ordinary width, analysed as autovacuum would have done."""
    with engine.begin() as connection:
        METADATA.create_all(connection)
        connection.exec_driver_sql(
            "INSERT INTO payment SELECT n, 'payment number ' || n || ' ' || md5(n::text), "
            "mod(n::bigint * 7919, 1000000) / 100.0, "
            "timestamptz '2020-01-01' + n * interval '1 second', mod(n, 2) = 0, mod(n, 1000) "
            "FROM generate_series(1, %s::integer) n",
            (rows,),
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE payment")


def measure_adoption(engine: Engine, number: int) -> tuple[float, float]:
    """Rows per second of COPY TO a client, and of an adoption into a log of its own."""
    schema = f"log_{number}"
    with engine.begin() as connection:
        for statement in create_statements(schema=schema):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    copied = measure_copy_out(engine)
    log = Oplog(TypeCatalog.from_models(METADATA), keyring=Keyring.generate(), schema=schema)
    with engine.connect() as connection:
        begun = time.perf_counter()
        report = log.adopt(connection)
        adopted = report.rows / (time.perf_counter() - begun)
    return copied, adopted


def measure_copy_out(engine: Engine) -> float:
    """Rows per second of COPY TO, read to the end and thrown away."""
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT count(*) FROM payment").scalar_one()
        raw: Any = connection.connection.driver_connection
        begun = time.perf_counter()
        with raw.cursor() as cursor, cursor.copy("COPY payment TO STDOUT") as copy:
            for _ in copy:
                pass
        return float(rows / (time.perf_counter() - begun))
