"""What makes a statement another one than SQLAlchemy compiled."""

from __future__ import annotations

from typing import Any

import pytest

from oplog.capture.rewriting import copy_parameters, differs

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
