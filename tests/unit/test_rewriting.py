"""What makes a statement another one than SQLAlchemy compiled."""

from __future__ import annotations

from typing import Any

import pytest

from oplog.capture.rewriting import copy_parameters, differs, is_other_batch

pytestmark = pytest.mark.unit
KNOWN = "/*oplog:1*/ UPDATE item SET v=%(v)s"


@pytest.mark.parametrize(
    "sent",
    [
        KNOWN,
        f"/* app */ {KNOWN}",
        f"-- app\n{KNOWN}",
        f"{KNOWN} /* a */ /* b */",
        f"{KNOWN};",
        f"{KNOWN} -- traceparent='00'",
    ],
)
def test_comments_around_it_do_not(sent: str) -> None:
    assert not differs((KNOWN, {}), (sent, {}))


@pytest.mark.parametrize(
    "sent",
    [
        "UPDATE item SET v=%(v)s",
        f"-- {KNOWN}",
        f"/* {KNOWN} */",
        f"/* /* a */ {KNOWN} */",
        f"/* a /* b */ {KNOWN}",
        f"{KNOWN} WHERE id = 1",
        f"{KNOWN} -- a\n WHERE id = 1",
        f"{KNOWN} /* a */ , w = 1",
        f"EXPLAIN {KNOWN}",
        f"{KNOWN}; DELETE FROM item",
    ],
)
def test_anything_else_does(sent: str) -> None:
    assert differs((KNOWN, {}), (sent, {}))


VALUE = [1, 2]


@pytest.mark.parametrize(
    ("known", "sent", "different"),
    [
        ({"v": VALUE}, {"v": VALUE}, False),
        ({"v": VALUE}, {"v": [1, 2]}, True),
        ({"v": 1.0}, {"v": 1}, True),
        ({"v": VALUE}, {"v": [2, 2]}, True),
        ({"v": VALUE}, {"w": VALUE}, True),
        ({"v": VALUE}, (VALUE,), True),
        ((VALUE,), [VALUE], False),
        ((VALUE,), (VALUE, VALUE), True),
        ([{"v": VALUE}], [{"v": VALUE}], False),
        ([{"v": VALUE}], [{"v": None}], True),
    ],
)
def test_other_parameters_do(known: Any, sent: Any, different: bool) -> None:
    assert differs((KNOWN, known), (KNOWN, sent)) is different


def test_parameters_that_are_changed_in_place() -> None:
    for sent in ({"v": 1}, [{"v": 1}, {"v": 2}]):
        known = copy_parameters(sent)
        assert not differs((KNOWN, known), (KNOWN, sent))
        (sent[0] if isinstance(sent, list) else sent)["v"] = 3
        assert differs((KNOWN, known), (KNOWN, sent))


ROW = "%(a)s, now()"
PLAIN = f"INSERT INTO item (a, b) VALUES ({ROW})"
SORTED = (
    f"INSERT INTO item (a, b) SELECT p0::INT, p1 FROM (VALUES ({ROW})) AS imp_sen(p0, p1, "
    "sen_counter) ORDER BY sen_counter RETURNING item.id"
)


def make_batch(known: str) -> str:
    return known.replace(f"({ROW})", "(%(a__0)s, now(), 0), (%(a__1)s, now(), 1)")


@pytest.mark.parametrize("known", [PLAIN, f"{PLAIN} RETURNING item.id", SORTED])
@pytest.mark.parametrize("around", ["{}", "/* a */ {}", "{} /* b() ) */", "{};", "{} -- c(1)"])
def test_the_rows_of_a_batch_do_not(known: str, around: str) -> None:
    assert not is_other_batch(known, around.format(make_batch(known)), values=ROW)


def test_a_batch_whose_values_were_translated_is_known_by_its_opening() -> None:
    assert not is_other_batch(PLAIN, make_batch(PLAIN), values="nextval('__[SCHEMA_x].s')")
    assert is_other_batch(PLAIN, make_batch(PLAIN).replace("item", "other"), values="nextval('s')")


@pytest.mark.parametrize(
    ("known", "sent"),
    [
        (PLAIN, make_batch(PLAIN) + " ON CONFLICT (a) DO NOTHING"),
        (PLAIN, make_batch(PLAIN).replace("item", "other")),
        (PLAIN, "EXPLAIN " + make_batch(PLAIN)),
        (PLAIN, make_batch(PLAIN) + "; DELETE FROM item"),
        (SORTED, make_batch(SORTED).replace(" RETURNING item.id", " RETURNING item.a")),
        (SORTED, make_batch(SORTED).replace("p0::INT", "p0::INT + 1")),
        (SORTED, make_batch(SORTED).replace("ORDER BY", "WHERE p0 > 1 ORDER BY")),
    ],
)
def test_more_than_its_rows_does(known: str, sent: str) -> None:
    assert is_other_batch(known, sent, values=ROW)
