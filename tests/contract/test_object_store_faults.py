"""What a store over the network does when it, or the way to it, fails.

Pauses cost nothing here: the clock advances by what is slept.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from oplog.archive.objectstore.protocol import CreateUnsupportedError, ObjectStore
from oplog.archive.objectstore.store_url import open_store
from oplog.backoff import Backoff
from oplog.errors import (
    ArchiveError,
    ObjectConflictError,
    ObjectTooLargeError,
    StorageConfigError,
    StoreUnavailableError,
)
from tests.s3stub import CREDENTIALS, Fault, S3Stub
from tests.timepiece import Timepiece

pytestmark = pytest.mark.contract

PATH = "HEAD/0000000000000001"
STORED = f"pre/fix/{PATH}"
PLACES = [
    lambda store: store.get(PATH, most=10),
    lambda store: store.head(PATH),
    lambda store: store.create(PATH, b"mine"),
    lambda store: store.put(PATH, b"mine"),
    lambda store: store.delete(PATH),
    lambda store: list(store.list("HEAD/")),
]
NAMES = ["get", "head", "create", "put", "delete", "list"]
Call = Callable[[ObjectStore], object]
every_call = pytest.mark.parametrize("call", PLACES, ids=NAMES)
# All but HEAD, whose answer has no body that could say why.
every_told_call = pytest.mark.parametrize(
    "call", [PLACES[0], *PLACES[2:]], ids=[NAMES[0], *NAMES[2:]]
)
every_object_call = pytest.mark.parametrize("call", PLACES[:-1], ids=NAMES[:-1])


# -- the traps of the client -----------------------------------------------------------------


def test_conflict_that_wrote_nothing_is_no_refusal(stub: S3Stub, remote: ObjectStore) -> None:
    """The client reports a 409 as "already exists" although nothing is there."""
    stub.plan(Fault(409, "ConditionalRequestConflict"), times=2)
    assert remote.create(PATH, b"mine")
    assert stub.objects == {STORED: b"mine"}
    assert len(stub.requests) == 3


def test_conflict_that_never_ends(stub: S3Stub, remote: ObjectStore) -> None:
    stub.plan(Fault(409, "ConditionalRequestConflict"), times=1000)
    with pytest.raises(StoreUnavailableError, match="ConditionalRequestConflict") as raised:
        remote.create(PATH, b"mine")
    assert raised.value.retryable
    assert stub.objects == {}


def test_conflict_without_a_reason_claims_nothing(stub: S3Stub, remote: ObjectStore) -> None:
    """Another store's 409 may mean that it is there: the caller looks, and finds nothing."""
    stub.plan(Fault(409, "SomethingElse"))
    assert not remote.create(PATH, b"mine")
    assert remote.get(PATH, most=10) is None


@pytest.mark.parametrize(
    "fault", [Fault(performed=True, dropped=True), Fault(500, "InternalError", performed=True)]
)
def test_own_write_whose_answer_was_lost(stub: S3Stub, remote: ObjectStore, fault: Fault) -> None:
    """The second attempt meets the first: refused, and what is there is one's own."""
    stub.plan(fault)
    assert not remote.create(PATH, b"mine")
    assert remote.get(PATH, most=10) == b"mine"


@pytest.mark.parametrize("fault", [Fault(dropped=True), Fault(500, "InternalError")])
def test_write_that_was_lost_is_done_again(stub: S3Stub, remote: ObjectStore, fault: Fault) -> None:
    stub.plan(fault)
    assert remote.create(PATH, b"mine")
    assert stub.objects == {STORED: b"mine"}


def test_request_that_lands_late_changes_nothing(stub: S3Stub, remote: ObjectStore) -> None:
    stub.plan(Fault(late=True))
    assert remote.create(PATH, b"mine")
    other = stub.open()
    assert not other.create(PATH, b"other")
    stub.land()
    assert stub.objects == {STORED: b"mine"}


def test_store_without_conditions_is_not_asked_for_long(
    stub: S3Stub, remote: ObjectStore, timepiece: Timepiece
) -> None:
    stub.refuses_conditions = True
    with pytest.raises(CreateUnsupportedError, match="501") as raised:
        remote.create(PATH, b"mine")
    assert "single_writer" in raised.value.hint
    assert len(stub.requests) == 1
    assert timepiece.pauses == []


def test_conditions_need_no_tag_and_no_part(stub: S3Stub, remote: ObjectStore) -> None:
    """Quoted tags are refused by some servers, and parts are not created on condition by others."""
    data = b"x" * (11 << 20)
    assert remote.create(PATH, data)
    (request,) = stub.requests
    assert request.headers["if-none-match"] == "*"
    assert "if-match" not in request.headers
    assert request.query == {}
    remote.put(PATH, data)
    assert [(one.method, one.query) for one in stub.requests] == [("PUT", {})] * 2


def test_checksums_are_sent(stub: S3Stub, remote: ObjectStore) -> None:
    remote.create("HEAD/1", b"hello")
    remote.put("HEAD/2", b"hello")
    sums = [request.headers["x-amz-checksum-sha256"] for request in stub.requests]
    assert sums == ["LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="] * 2


def test_body_that_was_damaged_on_its_way_is_sent_again(stub: S3Stub, remote: ObjectStore) -> None:
    stub.plan(Fault(400, "BadDigest"), times=2)
    assert remote.create(PATH, b"mine")


# -- D01, D02: throttling, errors of the server, silence -------------------------------------


@every_object_call
@pytest.mark.parametrize(
    "fault",
    [
        Fault(500, "InternalError"),
        Fault(503, "SlowDown"),
        Fault(429, "TooManyRequests"),
        Fault(408, "RequestTimeout"),
        Fault(dropped=True),
    ],
)
def test_trouble_that_passes(
    stub: S3Stub, remote: ObjectStore, timepiece: Timepiece, call: Call, fault: Fault
) -> None:
    stub.plan(fault, times=4)
    call(remote)
    assert len(stub.requests) == 5
    assert timepiece.pauses == [0.1, 0.2, 0.4, 0.8]


@every_object_call
def test_trouble_that_stays(
    stub: S3Stub, remote: ObjectStore, timepiece: Timepiece, call: Call
) -> None:
    stub.plan(Fault(503, "SlowDown"), times=1000)
    with pytest.raises(StoreUnavailableError, match=r"503 .*given up after \d+ attempts"):
        call(remote)
    assert timepiece.now <= 30
    assert len(stub.requests) == len(timepiece.pauses) + 1 < 20
    assert max(timepiece.pauses) == 5.0


@pytest.mark.parametrize("fault", [Fault(503, "SlowDown"), Fault(429), Fault(dropped=True)])
def test_listing_goes_on_after_trouble(stub: S3Stub, fault: Fault) -> None:
    stub.objects = {f"pre/fix/LOG/{number}": b"" for number in range(7)}
    stub.page_length = 2
    remote = stub.open(backoff=Backoff(deadline_seconds=20, first_seconds=0.001))
    pages = remote.list("LOG/")
    first = next(pages)
    stub.plan(fault, times=2)
    assert sorted(info.path for info in [first, *pages]) == [f"LOG/{n}" for n in range(7)]


def test_listing_gives_up(stub: S3Stub) -> None:
    stub.plan(Fault(503, "SlowDown"), times=1000)
    remote = stub.open(
        backoff=Backoff(deadline_seconds=1, first_seconds=0.001, longest_seconds=0.01)
    )
    with pytest.raises(StoreUnavailableError, match="SlowDown"):
        list(remote.list("LOG/"))
    assert len(stub.requests) < 20


@every_call
def test_silence_is_bounded(stub: S3Stub, call: Call) -> None:
    stub.plan(Fault(stalled=True), times=1000)
    remote = stub.open(backoff=Backoff(deadline_seconds=0.3, first_seconds=0.001))
    with pytest.raises(StoreUnavailableError):
        call(remote)


@every_call
def test_nobody_listens(call: Call) -> None:
    with S3Stub() as gone:
        remote = gone.open(backoff=Backoff(deadline_seconds=0.2, first_seconds=0.001))
    with pytest.raises(StoreUnavailableError, match=r"s3://stub/pre/fix"):
        call(remote)


# -- D04: answers that are not what they seem ------------------------------------------------


def test_body_that_is_cut_short_is_read_again(stub: S3Stub, remote: ObjectStore) -> None:
    stub.objects[STORED] = b"0123456789"
    stub.plan(Fault(performed=True, change=lambda body: body[:4]))
    assert remote.get(PATH, most=10) == b"0123456789"
    assert len(stub.requests) == 2


def test_body_that_is_always_cut_short(stub: S3Stub, remote: ObjectStore) -> None:
    stub.objects[STORED] = b"0123456789"
    stub.plan(Fault(performed=True, change=lambda body: body[:4]), times=1000)
    with pytest.raises(StoreUnavailableError):
        remote.get(PATH, most=10)


def test_header_that_promises_less_gives_less(stub: S3Stub, remote: ObjectStore) -> None:
    """The rest cannot be seen by any client: what was read does not have the hash of its name."""
    stub.objects[STORED] = b"0123456789"
    stub.plan(Fault(performed=True, length=4))
    assert remote.get(PATH, most=10) == b"0123"


def test_header_that_promises_too_much_is_not_waited_for(stub: S3Stub, remote: ObjectStore) -> None:
    stub.objects[STORED] = b"0123456789"
    stub.plan(Fault(performed=True, length=1 << 50))
    with pytest.raises(ObjectTooLargeError, match=f"has {1 << 50} bytes"):
        remote.get(PATH, most=10)


def test_error_in_the_body_of_success_is_only_bytes(stub: S3Stub, remote: ObjectStore) -> None:
    """It does not have the hash of its name either."""
    error = b"<Error><Code>InternalError</Code></Error>"
    stub.objects[STORED] = b"0" * len(error)
    stub.plan(Fault(performed=True, change=lambda _: error))
    assert remote.get(PATH, most=100) == error


# -- D08: listings ---------------------------------------------------------------------------


def test_listing_in_any_order_is_complete(stub: S3Stub, remote: ObjectStore) -> None:
    stub.objects = {f"pre/fix/LOG/{number:02}": b"x" for number in range(20)}
    stub.page_length = 3
    stub.arrange = lambda names: sorted(names, key=lambda name: name[::-1])
    found = [info.path for info in remote.list("LOG/", after="LOG/04")]
    assert found != sorted(found)
    assert sorted(found) == [f"LOG/{number:02}" for number in range(5, 20)]


def test_listing_of_a_server_that_cannot_start_after(stub: S3Stub, remote: ObjectStore) -> None:
    everything = [f"pre/fix/LOG/{number}" for number in range(9)]
    stub.objects = dict.fromkeys(everything, b"")
    stub.arrange = lambda _: everything
    assert [info.path for info in remote.list("LOG/", after="LOG/6")] == ["LOG/7", "LOG/8"]


def test_listing_shows_only_what_may_be_an_object(stub: S3Stub, remote: ObjectStore) -> None:
    stub.objects = dict.fromkeys(
        ["pre/fix/LOG/1", "pre/fix/LOG/", "pre/fix/LOG/a b", "pre/fix/LOG/.x", "pre/fixed/LOG/2"],
        b"",
    )
    assert [info.path for info in remote.list("LOG/")] == ["LOG/1"]


# -- D09, D12: what somebody has to mend -----------------------------------------------------


@every_told_call
@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (Fault(403, "AccessDenied"), "permissions"),
        (Fault(403, "InvalidAccessKeyId"), "credentials"),
        (Fault(403, "SignatureDoesNotMatch"), "credentials"),
        (Fault(400, "ExpiredToken"), "credentials"),
        (Fault(401), "permissions"),
        (Fault(403, "RequestTimeTooSkewed"), "clock"),
        (Fault(404, "NoSuchBucket"), "URL"),
        (Fault(301), "credentials, region and endpoint"),
    ],
    ids=lambda value: value.code or str(value.status) if isinstance(value, Fault) else "",
)
def test_refusals_are_told_at_once(
    stub: S3Stub, remote: ObjectStore, call: Call, fault: Fault, hint: str
) -> None:
    stub.plan(fault, times=1000)
    with pytest.raises(StorageConfigError) as raised:
        call(remote)
    assert hint in raised.value.hint
    assert fault.code in str(raised.value)
    assert "s3://stub/pre/fix" in str(raised.value)
    assert raised.value.exit_code == 13
    assert not raised.value.retryable
    assert len(stub.requests) == 1


def test_forbidden_head_is_told(stub: S3Stub, remote: ObjectStore) -> None:
    stub.plan(Fault(403))
    with pytest.raises(StorageConfigError, match="403"):
        remote.head(PATH)


@every_told_call
def test_no_bucket(stub: S3Stub, call: Call) -> None:
    store = open_store("s3://other/x", options={"endpoint": stub.endpoint, **CREDENTIALS})
    with pytest.raises(StorageConfigError, match="NoSuchBucket"):
        call(store)
    assert len(stub.requests) == 1


# -- D11: locks ------------------------------------------------------------------------------


def test_lock_refuses_to_overwrite(stub: S3Stub, remote: ObjectStore) -> None:
    stub.objects[STORED] = b"theirs"
    stub.locked.add(STORED)
    with pytest.raises(ObjectConflictError, match="ObjectLocked"):
        remote.put(PATH, b"mine")
    assert not remote.create(PATH, b"mine")
    assert stub.objects[STORED] == b"theirs"
    with pytest.raises(ArchiveError):
        remote.delete(PATH)
    assert len(stub.requests) == 3


# -- many at once ----------------------------------------------------------------------------


def test_threads_share_a_store(stub: S3Stub, remote: ObjectStore) -> None:
    # So few that one thread alone may meet them all.
    stub.plan(Fault(503, "SlowDown"), times=6)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: remote.create(f"LOG/{n}", b"%d" % n), range(60)))
    assert won == [True] * 60
    assert stub.objects == {f"pre/fix/LOG/{n}": b"%d" % n for n in range(60)}
