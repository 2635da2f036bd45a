"""Entries, changes and receipts as JSON, pickled, and as models of pydantic and FastAPI."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import fastapi
import pytest
from pydantic import TypeAdapter, ValidationError

from oplog import Change, FoundChange, LoggedEntry, Operation, OpType, Page, Receipt

pytestmark = pytest.mark.unit

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)
FIELDS: dict[str, Any] = {
    "price": Decimal("12345678901234567890.10"),
    "blob": b"\xff\x00",
    "at": NOW,
    "large": 2**60,
    "list": [Decimal("1.10"), [b"\xfe"]],
    "span": timedelta(days=-1, microseconds=1),
    "odd": 'snow \u2603 and "quotes"',
    "range": "[1,2)",
    "gone": None,
}
OPERATIONS = (
    Operation.create("account", key={"id": 1}, fields=FIELDS),
    Operation.update("account", key={"id": 1}, fields={"blob": b"\xff"}),
    Operation.delete("account", key={"id": 1}),
)
ENTRY = LoggedEntry(
    position=7,
    sequence=None,
    aggregate="account/1",
    version=1,
    operations=OPERATIONS,
    metadata={"actor": ["ann"]},
    transaction_id=9,
    entry_id=UUID(int=5),
    entry_hash=b"\xff" * 32,
    recorded_at=NOW,
)
CHANGE = Change(7, OpType.UPDATE, FIELDS, {"actor": ["ann"]}, NOW)
FOUND = FoundChange(
    position=7,
    sequence=3,
    aggregate="account/1",
    kind=OpType.UPDATE,
    type_name="account",
    key={"id": 1},
    fields=FIELDS,
    metadata={},
    recorded_at=NOW,
    entry_id=UUID(int=5),
    before={"blob": b"\xfe"},
)
RECEIPT = Receipt(UUID(int=5), "account/1", 1, b"\xff" * 32)
VALUES = [*OPERATIONS, ENTRY, CHANGE, FOUND, RECEIPT]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_is_pickled_and_copied(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    assert copy.deepcopy(value) == value


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_pydantic_writes_what_to_json_gives(value: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(type(value))
    assert adapter.validate_python(value) is value
    assert json.loads(adapter.dump_json(value)) == value.to_json()
    schema = adapter.json_schema(mode="serialization")
    assert schema["required"] == list(value.to_json())
    with pytest.raises(ValidationError):
        adapter.validate_python(value.to_json())


def test_values_are_exact_in_json() -> None:
    fields = json.loads(json.dumps(CHANGE.to_json(), allow_nan=False))["fields"]
    assert Decimal(fields["price"]) == FIELDS["price"]
    assert bytes.fromhex(fields["blob"][2:]) == FIELDS["blob"]
    assert datetime.fromisoformat(fields["at"]) == NOW
    assert int(fields["large"]) == 2**60
    assert [fields["list"][0], fields["list"][1]] == ["1.10", ["\\xfe"]]
    assert (fields["odd"], fields["range"], fields["gone"]) == (FIELDS["odd"], "[1,2)", None)
    odd = Change(1, OpType.UPDATE, {"n": math.nan, "i": -math.inf}, {}, NOW).to_json()
    assert json.loads(json.dumps(odd, allow_nan=False))["fields"] == {"n": "NaN", "i": "-Infinity"}


def test_a_page_keeps_its_cursor() -> None:
    page: Page[Change] = Page([CHANGE], cursor="np7")
    again = pickle.loads(pickle.dumps(page))
    assert (again, again.cursor) == ([CHANGE], "np7")
    assert page.to_json() == {"items": [CHANGE.to_json()], "cursor": "np7"}


async def get(app: Any, path: str) -> Any:
    """What an application answers, without a client or a port."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 200
    return json.loads(b"".join(message.get("body", b"") for message in sent))


async def test_responses_of_fastapi() -> None:
    app = fastapi.FastAPI()

    async def read_entries() -> Any:
        return [ENTRY]

    async def read_history() -> Any:
        return Page([CHANGE])

    app.get("/entries", response_model=list[LoggedEntry])(read_entries)
    app.get("/history", response_model=list[Change])(read_history)
    assert await get(app, "/entries") == [ENTRY.to_json()]
    assert await get(app, "/history") == [CHANGE.to_json()]
    described = await get(app, "/openapi.json")
    answer = described["paths"]["/entries"]["get"]["responses"]["200"]
    assert answer["content"]["application/json"]["schema"]["items"]["title"] == "LoggedEntry"
