"""The stand-ins fail as they say, so that tests that use them mean something."""

from __future__ import annotations

import pytest

from oplog.archive.objectstore.memory import Call, MemoryStore
from oplog.errors import StoreUnavailableError
from tests.faulty_store import (
    ABSENT,
    DELAY,
    KILL_AFTER,
    KILL_BEFORE,
    LOSE_ANSWER,
    LOSE_REQUEST,
    Fault,
    FaultyStore,
    Killed,
    flip,
)

pytestmark = pytest.mark.contract


def read(store: FaultyStore, path: str = "LATEST") -> bytes | None:
    return store.inner.get(path, most=100)


def test_without_a_plan_it_counts() -> None:
    store = FaultyStore(MemoryStore())
    assert store.create("LATEST", b"1")
    assert not store.create("LATEST", b"2")
    assert [info.path for info in store.list("")] == ["LATEST"]
    store.delete("LATEST")
    assert [(call.number, call.operation) for call in store.calls] == [
        (1, "create"),
        (2, "create"),
        (3, "list"),
        (4, "delete"),
    ]


@pytest.mark.parametrize(("fault", "written"), [(KILL_BEFORE, None), (KILL_AFTER, b"2")])
def test_killed_stays_dead(fault: Fault, written: bytes | None) -> None:
    store = FaultyStore(MemoryStore(), {2: fault})
    store.put("LOG/1", b"1")
    with pytest.raises(Killed):
        store.put("LATEST", b"2")
    assert read(store) == written
    with pytest.raises(Killed):
        store.get("LATEST", most=1)
    assert len(store.calls) == 2


def test_lost_request_and_lost_answer() -> None:
    store = FaultyStore(MemoryStore(), {1: LOSE_REQUEST, 2: LOSE_ANSWER})
    for written in (None, b"1"):
        with pytest.raises(StoreUnavailableError):
            store.create("LATEST", b"1")
        assert read(store) == written


def test_delayed_requests_land_in_order() -> None:
    store = FaultyStore(MemoryStore(), {1: DELAY, 2: DELAY})
    for data in (b"1", b"2"):
        with pytest.raises(StoreUnavailableError):
            store.put("LATEST", data)
    store.put("LATEST", b"3")
    assert store.land() == 2
    assert read(store) == b"2"
    assert store.land() == 0


def test_flipped_and_absent() -> None:
    store = FaultyStore(MemoryStore(), {2: flip(4), 3: ABSENT, 4: ABSENT, 5: ABSENT})
    store.put("LATEST", b"abc")
    assert store.get("LATEST", most=3) == bytes([ord("a"), ord("b") ^ 0xFF, ord("c")])
    assert store.get("LATEST", most=3) is None
    assert store.head("LATEST") is None
    assert list(store.list("")) == []
    assert read(store) == b"abc"


def test_plan_by_operation_and_path() -> None:
    store = FaultyStore(
        MemoryStore(), lambda call: KILL_AFTER if call.path.startswith("HEAD/") else None
    )
    assert store.create("LOG/1", b"")
    with pytest.raises(Killed):
        store.create("HEAD/1", b"")
    assert read(store, "HEAD/1") == b""


def test_hook_sees_every_call_of_memory_twice() -> None:
    seen: list[Call] = []
    store = MemoryStore(on_call=seen.append)
    store.create("LATEST", b"")
    list(store.list(""))
    assert seen == [
        Call("create", "LATEST", done=False),
        Call("create", "LATEST", done=True),
        Call("list", "", done=False),
        Call("list", "", done=True),
    ]


@pytest.mark.parametrize(("done", "written"), [(False, None), (True, b"")])
def test_hook_may_stop_a_call_of_memory(done: bool, written: bytes | None) -> None:
    def stop(call: Call) -> None:
        if call.operation == "put" and call.done is done:
            raise Killed

    store = MemoryStore(on_call=stop)
    with pytest.raises(Killed):
        store.put("LATEST", b"")
    assert store.get("LATEST", most=1) == written
