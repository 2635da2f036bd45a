"""What stands for a request when nothing is said, and what makes two of them differ."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import partial
from hashlib import sha256
from typing import Any

import pytest

from oplog.capture.request import (
    MAX_KEY_BYTES,
    Claim,
    check_key,
    check_same,
    fingerprint_request,
    fingerprint_work,
)
from oplog.errors import ConfigurationError, IdempotencyConflictError, InvalidMetadataError

pytestmark = pytest.mark.unit


def pay(session: object, amount: int = 1, *, note: str = "") -> None:
    """A work with a name."""


def refund(session: object, amount: int = 1, *, note: str = "") -> None:
    """Another one."""


def make(amount: Any) -> Callable[[Any], Any]:
    def work(session: Any) -> Any:
        return session, amount

    return work


def make_counting() -> Callable[[Any], int]:
    count = 0

    def work(session: Any) -> int:
        nonlocal count
        count += 1
        return count

    return work


class Service:
    """Works that are methods, and an object that is one itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def pay(self, session: object) -> str:
        return self.name

    def refund(self, session: object) -> str:
        return self.name

    def __call__(self, session: object) -> str:
        return self.name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pay, pay),
        (make(5), make(5)),
        (make((1, "a", None, date(2020, 1, 1))), make((1, "a", None, date(2020, 1, 1)))),
        (partial(pay, amount=5), partial(pay, amount=5)),
        # What no other process could find again is left out.
        (make([1]), make([2])),
        (make(object()), make(object())),
        (Service("a").pay, Service("b").pay),
        (Service("a"), Service("b")),
    ],
)
def test_the_same(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    assert fingerprint_work(one) == fingerprint_work(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pay, refund),
        (make(5), make(7)),
        (make(1), make(1.0)),
        (make(1), make("1")),
        (make((1, 2)), make((2, 1))),
        (partial(pay, amount=5), partial(pay, amount=7)),
        (partial(pay, amount=5), partial(refund, amount=5)),
        (partial(pay, None, 5), partial(pay, None, 7)),
        (partial(pay, amount=5), pay),
        (partial(pay, note="x"), partial(pay, note="y")),
        (lambda session: pay(session, 1), lambda session: pay(session, 2)),
        (lambda session: pay(session, 1), lambda session: refund(session, 1)),
        (Service("a").pay, Service("a").refund),
    ],
)
def test_another(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    assert fingerprint_work(one) != fingerprint_work(other)


def test_what_a_work_counts_itself_does_not_make_it_another() -> None:
    work = make_counting()
    before = fingerprint_work(work)
    work(None)
    assert fingerprint_work(work) == before


def test_a_variable_without_a_value_is_no_hindrance() -> None:
    def outer() -> Callable[[Any], Any]:
        def work(session: Any) -> Any:
            return later

        found = fingerprint_work(work)
        later = 1
        assert fingerprint_work(work) != found
        return work

    outer()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ([1, 2], [2, 1], False),
        ("ab", b"ab", False),
        ("1", 1, False),
        ("ä", "ä", True),
        (b"", "", False),
    ],
)
def test_requests(one: Any, other: Any, same: bool) -> None:
    assert (fingerprint_request(one) == fingerprint_request(other)) is same


@pytest.mark.parametrize("request_", [object(), {"a": {1, 2}}, float("nan"), {(1, 2): 3}])
def test_requests_that_cannot_be_compared(request_: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be compared"):
        fingerprint_request(request_)


def test_fingerprints_do_not_depend_on_the_process() -> None:
    # Stored in logs: they must be found again by every later version.
    assert fingerprint_request({"b": 1, "a": "x"}) == digest("json", '{"a":"x","b":1}')
    assert fingerprint_work(partial(pay, amount=5)) == digest(
        "work", "partial", "amount=int:5", f"{__name__}.pay", "0=int:1", "note=str:''"
    )


def digest(kind: str, *parts: str) -> str:
    text = b"".join(len(part).to_bytes(8, "big") + part.encode() for part in parts)
    return sha256(b"oplog/v1/request/" + kind.encode() + text).hexdigest()


@pytest.mark.parametrize("key", ["", "x" * (MAX_KEY_BYTES + 1), "a\x00b", "\ud800", 5])
def test_keys_that_cannot_be_stored(key: Any) -> None:
    with pytest.raises(InvalidMetadataError):
        check_key(key)


def test_keys_that_can() -> None:
    for key in ("k", "x" * MAX_KEY_BYTES, "'; DROP TABLE x; --", "ключ"):
        assert check_key(key) == key


def test_one_key_for_one_request() -> None:
    check_same(Claim("k", "a"), stored="a")
    check_same(Claim("k", None), stored="a")
    check_same(Claim("k", "a"), stored=None)
    with pytest.raises(IdempotencyConflictError, match="another request"):
        check_same(Claim("k", "a"), stored="b")
