"""A column of any type, given anything: the log replays to the same bytes, or nothing was written.

Set OPLOG_TEST_SEED to explore; without it every run does the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from oplog.errors import NotCapturableError
from tests.older import READ_SINCE, mark_cases
from tests.property.type_samples import Sample
from tests.property.type_samples_made import SAMPLES
from tests.property.type_tables import (
    WAYS,
    TypeTable,
    Way,
    assert_exact,
    find,
    open_table,
    pin_settings,
)

pytestmark = [pytest.mark.postgres, pytest.mark.property]

LONGEST_KEY = 100
UNREADABLE = "-2562047788:00:54.775808"
"""In an interval that Postgres prints and does not read."""
SEED = os.environ.get("OPLOG_TEST_SEED")
EXAMPLES = settings(
    max_examples=2,
    deadline=None,
    database=None,
    derandomize=SEED is None,
    # Values are only drawn here, and fail together: there is nothing to shrink.
    phases=[Phase.generate],
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def draw(strategy: st.SearchStrategy[Any]) -> list[Any]:
    """Hypothesis' examples, the least that there is first."""
    drawn: list[Any] = []

    def keep(value: Any) -> None:
        drawn.append(value)

    test = EXAMPLES(given(strategy)(keep))
    (seed(int(SEED))(test) if SEED is not None else test)()
    return drawn


def some(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    if strategy.is_empty:
        return st.just([])
    return st.lists(strategy, min_size=8, max_size=8)


def write(db: TypeTable, way: Way, ids: Sequence[int], values: Sequence[str | None]) -> None:
    with db.sessions.begin() as session:
        way(session, db, dict(zip(ids, values, strict=True)), fresh=True)
    turned = [*values[1:], values[0]]
    with db.sessions.begin() as session:
        way(session, db, dict(zip(ids, turned, strict=True)), fresh=False)


def write_python(db: TypeTable, ids: Sequence[int], values: Sequence[Any]) -> None:
    """As an application whose model declares the type would: predicted where possible."""
    with db.sessions.begin() as session:
        session.add_all([db.row(id=id_, p=value) for id_, value in zip(ids, values, strict=True)])
    with db.sessions.begin() as session:
        for id_, value in zip(ids, reversed(values), strict=True):
            find(session, db, id_).p = value


@pytest.mark.sampled(20)
@pytest.mark.parametrize(
    "sample", mark_cases({sample.sql: sample for sample in SAMPLES}, also=READ_SINCE)
)
def test_a_column_of_any_type_replays_to_the_same_bytes(sample: Sample, engine: Engine) -> None:
    db = open_table(engine, sample)
    ids = count(1)
    rows = 0
    nothing = [None] if sample.nullable else []

    def take(values: Sequence[Any]) -> list[int]:
        nonlocal rows
        rows += len(values)
        return [next(ids) for _ in values]

    drawn = draw(st.tuples(some(sample.texts), some(sample.python)))
    # The first is the least that there is, over and over.
    texts = [*sample.always, *drawn[0][0][:1], *drawn[-1][0], *nothing]
    found = [*sample.given, *drawn[-1][1]]
    values = [*drawn[0][1][:1], *found, *nothing]
    for way in WAYS:
        write(db, way, take(texts), texts)
    write_python(db, take(values), values)
    if "k" in db.tables:
        use_text_keys(db, list_distinct(db, sample.always))
    if "q" in db.tables:
        use_python_keys(db, found[: len(found) // 2 * 2])
    assert_exact(db, rows=rows)


# -- keys -----------------------------------------------------------------------------------


def list_distinct(db: TypeTable, texts: Sequence[str]) -> list[str]:
    """Texts of the values that the key calls distinct, as Postgres prints them."""
    with db.engine.connect() as connection:
        pin_settings(connection)
        printed = connection.execute(
            sa.text(
                f"SELECT min(CAST(CAST(v AS {db.sample.sql}) AS text)) "
                "FROM unnest(CAST(:texts AS text[])) x(v) "
                f"GROUP BY CAST(v AS {db.sample.sql}) ORDER BY 1"
            ),
            {"texts": list(texts)},
        ).scalars()
        return [text for text in printed if len(text) < LONGEST_KEY and UNREADABLE not in text]


def use_keys(db: TypeTable, table: sa.Table, keys: Sequence[Any], *, rename: bool) -> None:
    """Insert, change and delete rows by keys of the type, and change a key."""
    with db.sessions.begin() as session:
        # Not as objects: a list cannot be part of an identity.
        session.execute(sa.insert(table), [{"id": key, "note": "made"} for key in keys])
    with db.sessions.begin() as session:
        for key in keys[1:]:
            session.execute(sa.update(table).where(table.c.id == key).values(note="changed"))
    with db.sessions.begin() as session:
        session.execute(sa.delete(table).where(table.c.id == keys[0]))
    if rename:
        with db.sessions.begin() as session:
            last = table.c.id == keys[-1]
            session.execute(sa.update(table).where(last).values(id=keys[0]))


def use_text_keys(db: TypeTable, keys: Sequence[str]) -> None:
    if db.sample.key in ("exact", "text"):
        use_keys(db, db.tables["k"], keys, rename=False)
    else:
        with pytest.raises(NotCapturableError, match=r'"public"\."k"'):
            use_keys(db, db.tables["k"], keys, rename=False)


def use_python_keys(db: TypeTable, values: Sequence[Any]) -> None:
    """Each is logged exactly or refused; what is equal to one before is neither."""
    logged = 0
    refusals = []
    for one, other in zip(values[::2], values[1::2], strict=True):
        try:
            use_keys(db, db.tables["q"], [one, other], rename=True)
            logged += 1
        except NotCapturableError as error:
            refusals.append(str(error))
        except IntegrityError as error:
            # A drawn key that is equal to the one before it.
            if "duplicate key" not in str(error):
                raise
    assert all('"public"."q"' in refusal for refusal in refusals)
    if SEED is None:
        assert (logged > 0) == (db.sample.key in ("exact", "python"))
