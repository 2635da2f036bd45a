"""Ten thousand calls of a role that may append: whatever is accepted stops nobody."""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from psycopg.types.json import Jsonb
from sqlalchemy.engine import URL, Connection, Engine

from oplog import Archive, Oplog, open_archive
from oplog.errors import QuarantineWarning
from oplog.schema.rights import APPLICATION_EXECUTES, CALLED_BY_EVERYBODY
from oplog.schema.tables import create_statements
from tests.models.bank import Account
from tests.postgres.hostile import Draw, Function, call, list_functions
from tests.postgres.roles import APPLICATION, OWNER, WORKER, Roles, open_roles
from tests.sampling import Sample

pytestmark = pytest.mark.postgres

CALLS = 10_000
_AT_ONCE = 200
_KEPT = 120
"""So many accepted calls of each function stay; more would only make readers slow."""
_HONEST_APPEND = {
    "p_expected": None,
    "p_firsts": None,
    "p_more": None,
    "p_metadata": ["actor", "mallory"],
    "p_idempotency_key": None,
    "p_epoch": None,
    "p_relations": None,
    "p_labels": None,
    "p_form": None,
    "p_tally": None,
    "p_asynchronous": True,
}
_OURS = re.compile(
    # What the functions say themselves, a key or id that is used up, a tally that is not open, and
    # a list of empty lists, which is none before PostgreSQL 17.
    r"(22023|42501|OP\d\d\d) oplog: |23505 .*oplog_outcome_idempotency|42704 .*oplog\.tally|"
    r'22P02 malformed array literal: "\{\{\}'
)


@pytest.fixture(scope="module")
def definition() -> list[str]:
    return create_statements()


@pytest.fixture
def roles(bare_database_url: URL, definition: list[str]) -> Iterator[Roles]:
    with open_roles(bare_database_url, definition) as roles:
        sessions = roles.open_sessions()
        for number in range(1, 6):
            with sessions.begin() as session:
                session.add(Account(id=number, owner="ada", balance=number))
        yield roles


def gather_honest(roles: Roles) -> dict[str, list[Any]]:
    """Values of the log as it is, which a hostile role can read."""
    with roles.engine(APPLICATION).connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT record_id, data, key_id, record_hash, aggregates FROM oplog.oplog_record"
        ).all()
        shapes = connection.exec_driver_sql("SELECT shape, descriptor FROM oplog.oplog_type").all()
    return {
        "uuid": [row.record_id for row in rows],
        "bytea": [*(row.data for row in rows), *(row.record_hash for row in rows)]
        + [shape.descriptor for shape in shapes],
        "text": [rows[0].key_id, "account"],
        "text[]": [row.aggregates for row in rows],
        "smallint": [1, 1, 2, 3],
        "jsonb": [shape.shape for shape in shapes],
    }


def draw_values(draw: Draw, function: Function, key_id: str) -> dict[str, Any]:
    values = {name: draw.value(kind) for name, kind in function.arguments.items()}
    if function.name == "oplog_append":
        # Few arguments are hostile at a time, or none would get further than the first check.
        honest: dict[str, Any] = {**_HONEST_APPEND, "p_format": 1, "p_key_id": key_id}
        honest["p_record"] = draw.random.randbytes(16).hex()
        honest["p_data"] = draw.random.randbytes(120)
        honest["p_aggregates"] = [f"account/{draw.random.randrange(2000)}"]
        kept = draw.random.randrange(5)
        hostile = draw.random.sample(list(honest), k=kept)
        values = {**honest, **{name: values[name] for name in hostile}}
        values = {name: values[name] for name in function.arguments}
    return {
        name: Jsonb(value) if function.arguments[name] == "jsonb" else value
        for name, value in values.items()
    }


def attack(roles: Roles, seed: str) -> tuple[Counter[str], Counter[str]]:
    """How often each function was called, and how often what was called was accepted."""
    honest = gather_honest(roles)
    draw = Draw(random.Random(seed), honest)
    called: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    with roles.engine(APPLICATION).connect() as connection:
        functions = list_functions(connection, roles.names[APPLICATION])
        appends = [f for f in functions if f.name == "oplog_append"]
        weighted = [*functions, *appends * len(functions)]
        while called.total() < CALLS:
            for _ in range(_AT_ONCE):
                function = draw.random.choice(weighted)
                values = draw_values(draw, function, honest["text"][0])
                keep = accepted[function.name] < _KEPT
                refusal = call(connection, function, values, keep=keep)
                called[function.name] += 1
                if refusal is None:
                    accepted[function.name] += 1
                else:
                    assert _OURS.match(refusal), (seed, function.name, values, refusal)
            # What one transaction settles or counts is not the matter here.
            connection.exec_driver_sql("RESET ALL")
            connection.commit()
    return called, accepted


def quarantine_all(roles: Roles, log: Oplog, through: int) -> int:
    """What the owner does about records that nobody can read; how many there were."""
    with roles.engine(OWNER).connect() as connection:
        positions = connection.exec_driver_sql(
            "SELECT position FROM oplog.oplog_record "
            "WHERE position > 5 AND position <= %s AND format <> 3 ORDER BY 1",
            (through,),
        ).scalars()
        count = 0
        for position in list(positions):
            log.quarantine(connection, position, reason="appended by a stranger", lost_key=True)
            count += 1
        connection.commit()
    return count


def restore(roles: Roles, target: Engine, archive: Archive) -> list[Any]:
    """Rows of a database that comes from the archive."""
    Account.metadata.create_all(target)
    with target.connect() as connection:
        roles.open_log().restore(archive, connection)
        return read_accounts(connection)


def read_accounts(connection: Connection) -> list[Any]:
    return list(connection.exec_driver_sql("SELECT * FROM account ORDER BY id"))


@pytest.mark.sampled
def test_whatever_is_accepted_stops_nobody(
    roles: Roles, spare_engine: Engine, sample: Sample
) -> None:
    seed = sample.sampling.seed
    called, accepted = attack(roles, seed)
    assert called.total() >= CALLS
    # Both kinds were met, or the draw has become too tame or too wild.
    assert _KEPT < accepted["oplog_append"] < called["oplog_append"] - 100
    assert accepted["oplog_register_type"] < called["oplog_register_type"]

    (last,) = roles.ask("SELECT max(position) FROM oplog.oplog_record")
    # The application, and the worker, which needs no key, go on as if nothing had been.
    sessions = roles.open_sessions()
    with sessions.begin() as session:
        session.add(Account(id=100, owner="bob", balance=1))
        session.execute(sa.text("UPDATE account SET owner = 'eve' WHERE id = 1"))
    archive = open_archive("memory://")
    log = roles.open_log()
    report = log.sync(roles.engine(WORKER), archive)
    assert report.entries > _KEPT

    with warnings.catch_warnings(), roles.engine(OWNER).connect() as connection:
        warnings.simplefilter("ignore", QuarantineWarning)
        quarantine_all(roles, log, last)
        assert log.verify(connection).ok
        assert len(list(log.read(connection))) > _KEPT
        for batch in log.subscribe(roles.engine(OWNER), name="after"):
            batch.commit()
        log.sync(roles.engine(WORKER), archive)
        log.snapshot(roles.engine(OWNER), archive)
        assert log.check(archive).ok
        assert restore(roles, spare_engine, archive) == read_accounts(connection)


def test_the_generator_reaches_every_function(roles: Roles) -> None:
    with roles.engine(APPLICATION).connect() as connection:
        names = {f.name for f in list_functions(connection, roles.names[APPLICATION])}
    assert names == {f"oplog_{name}" for name in (*APPLICATION_EXECUTES, *CALLED_BY_EVERYBODY)}
