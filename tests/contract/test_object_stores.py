"""What every store promises, whichever it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest

from oplog.archive.objectstore.probe import Verdict, probe_store
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.errors import ArchiveError, ObjectTooLargeError

pytestmark = pytest.mark.contract

HEAD = "HEAD/0000000000000001"
OUTSIDE = [
    "",
    "/",
    "/etc/passwd",
    "../x",
    "LOG/../x",
    "LOG/./x",
    "LOG//x",
    "LOG/",
    "C:\\x",
    "LOG/a\0b",
    "LOG/a\nb",
    "LOG/é",
    "LOG/.hidden",
    "LOG/a b",
    "LOG/a?b",
    "LOG/a%2e",
    "x" * 600,
]


def paths(store: ObjectStore, prefix: str = "", *, after: str = "") -> list[str]:
    return sorted(info.path for info in store.list(prefix, after=after))


def test_nothing_is_there_at_first(store: ObjectStore) -> None:
    assert store.get(HEAD, most=10) is None
    assert store.head(HEAD) is None
    assert paths(store) == []
    assert paths(store, "HEAD/") == []


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"words", bytes(range(256)) * 20_000],
    ids=["empty", "nul", "words", "megabytes"],
)
def test_bytes_come_back(store: ObjectStore, data: bytes) -> None:
    assert store.create("BLOB/a-1_b.c", data)
    assert store.get("BLOB/a-1_b.c", most=len(data)) == data
    info = store.head("BLOB/a-1_b.c")
    assert info is not None
    assert (info.path, info.size) == ("BLOB/a-1_b.c", len(data))
    (listed,) = store.list("BLOB/")
    assert (listed.path, listed.size) == (info.path, info.size)
    # The header of an answer has whole seconds.
    assert abs(listed.modified - info.modified) < timedelta(seconds=1)


def test_what_is_there_is_not_created_again(store: ObjectStore) -> None:
    assert store.create(HEAD, b"first")
    assert not store.create(HEAD, b"second")
    assert not store.create(HEAD, b"first")
    assert store.get(HEAD, most=10) == b"first"


def test_one_of_many_creates_it(store: ObjectStore) -> None:
    for turn in range(5):
        path, gate = f"HEAD/{turn}", Barrier(8)

        def race(number: int, path: str = path, gate: Barrier = gate) -> bool:
            gate.wait(30)
            return store.create(path, bytes([number]) * 10_000)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(race, range(8)))
        assert won.count(True) == 1
        assert store.get(path, most=10_000) == bytes([won.index(True)]) * 10_000


def test_put_replaces(store: ObjectStore) -> None:
    store.put("LATEST", b"1")
    store.put("LATEST", b"22")
    assert store.get("LATEST", most=2) == b"22"
    assert not store.create("LATEST", b"3")


def test_deleted_is_gone_and_may_come_again(store: ObjectStore) -> None:
    store.delete(HEAD)
    store.create(HEAD, b"first")
    store.delete(HEAD)
    store.delete(HEAD)
    assert store.get(HEAD, most=10) is None
    assert store.head(HEAD) is None
    assert paths(store) == []
    assert store.create(HEAD, b"again")


def test_reads_are_bounded(store: ObjectStore) -> None:
    store.put("LATEST", b"x" * 1001)
    with pytest.raises(ObjectTooLargeError, match=r"LATEST has 1001 bytes, at most 1000"):
        store.get("LATEST", most=1000)
    with pytest.raises(ObjectTooLargeError):
        store.get("LATEST", most=0)


def test_listing_is_by_folder(store: ObjectStore) -> None:
    for path in ("LATEST", "LOG/1", "LOG/2", "LOG/10", "LOGS/1", "LOG/deep/er/1"):
        store.create(path, b"x")
    assert paths(store) == ["LATEST", "LOG/1", "LOG/10", "LOG/2", "LOG/deep/er/1", "LOGS/1"]
    assert paths(store, "LOG/") == ["LOG/1", "LOG/10", "LOG/2", "LOG/deep/er/1"]
    assert paths(store, "LOG/deep/") == ["LOG/deep/er/1"]
    assert paths(store, "NONE/") == []
    assert paths(store, "LOG/", after="LOG/1") == ["LOG/10", "LOG/2", "LOG/deep/er/1"]
    # What comes first need not be there.
    assert paths(store, "LOG/", after="LOG/11") == ["LOG/2", "LOG/deep/er/1"]
    assert paths(store, after="LOG/z") == ["LOGS/1"]


def test_listing_has_no_end_of_page(store: ObjectStore) -> None:
    expected = {f"LOG/{number:016x}" for number in range(1100)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: store.put(path, b""), expected))
    found = [info.path for info in store.list("LOG/")]
    assert len(found) == len(expected)
    assert set(found) == expected


def test_objects_have_an_age(store: ObjectStore) -> None:
    store.put("LATEST", b"")
    info = store.head("LATEST")
    assert info is not None
    assert info.modified.utcoffset() == timedelta(0)
    assert datetime(1999, 1, 1, tzinfo=UTC) < info.modified


@pytest.mark.parametrize("path", OUTSIDE, ids=range(len(OUTSIDE)))
def test_no_path_leads_out(store: ObjectStore, path: str) -> None:
    for call in (
        lambda: store.get(path, most=1),
        lambda: store.head(path),
        lambda: store.create(path, b""),
        lambda: store.put(path, b""),
        lambda: store.delete(path),
    ):
        with pytest.raises(ArchiveError, match="is not the path of an object"):
            call()


@pytest.mark.parametrize("prefix", ["LOG", "/", "../", "LOG/../", "LOG//"])
def test_only_folders_are_listed(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(ArchiveError, match="is not"):
        list(store.list(prefix))


def test_the_probe_finds_it_atomic_and_cleans_up(store: ObjectStore) -> None:
    store.put("LATEST", b"")
    assert probe_store(store) is Verdict.ATOMIC
    assert paths(store) == ["LATEST"]


def test_the_url_says_where(store: ObjectStore) -> None:
    scheme, _, rest = store.url.partition("://")
    assert scheme in {"memory", "file", "s3"}
    assert "nothing" not in rest
