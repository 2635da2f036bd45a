"""What an idempotency key stands for: the same request has one fingerprint, another another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from oplog.capture.request import (
    MAX_KEY_BYTES,
    Claim,
    check_key,
    check_same,
    fingerprint_request,
    fingerprint_work,
    refuse_repeat,
)
from oplog.errors import ConfigurationError, IdempotencyConflictError, InvalidMetadataError
from oplog.receipt import Receipt

pytestmark = pytest.mark.unit

RECEIPTS = (Receipt(UUID(int=1), "a", 1, b"h"),)


@pytest.mark.parametrize("key", ["k", "é" * (MAX_KEY_BYTES // 2), "x" * 1024])
def test_a_key_that_fits_is_kept(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513, "a\0b", "\ud800"])
def test_a_key_that_cannot_be_stored_is_refused(key: str) -> None:
    with pytest.raises(InvalidMetadataError):
        check_key(key)


# -- requests -----------------------------------------------------------------------------


def test_a_request_is_hashed_in_one_form() -> None:
    found = fingerprint_request({"b": [1, "é"], "a": None})
    text = b'{"a":null,"b":[1,"\\u00e9"]}'
    length = len(text).to_bytes(8, "big")
    assert found == hashlib.sha256(b"oplog/v1/request/json" + length + text).hexdigest()
    data = (3).to_bytes(8, "big") + b"abc"
    assert (
        fingerprint_request(b"abc") == hashlib.sha256(b"oplog/v1/request/bytes" + data).hexdigest()
    )


def test_other_requests_have_other_fingerprints() -> None:
    requests = [b"abc", "abc", ["abc"], {"abc": 1}, {"abc": "1"}, 1, 1.5, None, True]
    assert len({fingerprint_request(request) for request in requests}) == len(requests)


@pytest.mark.parametrize("request_", [object(), {1, 2}, float("nan"), Decimal(1), {(1,): 2}])
def test_what_has_no_certain_form_is_refused(request_: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be compared"):
        fingerprint_request(request_)


def test_another_request_under_the_key_is_refused() -> None:
    claim = Claim("k", "one", RECEIPTS)
    check_same(claim, stored="one")
    check_same(claim, stored=None)
    check_same(Claim("k", None), stored="two")
    with pytest.raises(IdempotencyConflictError, match="'k' was used for another") as caught:
        check_same(claim, stored="two")
    assert caught.value.receipts == list(RECEIPTS)


def test_a_repeat_says_what_was_written_first() -> None:
    error = refuse_repeat(Claim("k", None, RECEIPTS))
    assert isinstance(error, IdempotencyConflictError)
    assert error.receipts == list(RECEIPTS)


# -- works --------------------------------------------------------------------------------


def work(session: object, **more: object) -> None:
    """A work with a name of its own."""


def other(session: object) -> None:
    """Another."""


class Worker:
    """Works that are methods, or are called."""

    def work(self, session: object) -> None:
        """A method."""

    def __call__(self, session: object) -> None:
        """An object that is called."""


def close_over(value: Any) -> Callable[[object], Any]:
    def made(session: object) -> Any:
        return value

    return made


def close_over_what_it_assigns(value: Any) -> Callable[[object], Any]:
    def made(session: object) -> Any:
        nonlocal value
        value = 0
        return value

    return made


def close_over_nothing_yet(*, given: bool = False) -> Callable[[object], Any]:
    def made(session: object) -> Any:
        return later

    if given:
        later = 1
    return made


def with_default(default: Any, keyword: Any) -> Callable[..., Any]:
    def made(session: object, a: Any = default, *, b: Any = keyword) -> Any:
        return a, b

    return made


def with_keywords(*, turned: bool) -> Callable[..., Any]:
    if turned:

        def made(session: object, *, b: int = 2, a: int = 1) -> Any:
            return a, b

    else:

        def made(session: object, *, a: int = 1, b: int = 2) -> Any:
            return a, b

    return made


NESTED = "lambda s: [lambda: x for x in s]"

SAME = [
    (with_keywords(turned=True), with_keywords(turned=False)),
    (eval(NESTED), eval(NESTED)),
    (work, work),
    (close_over(1), close_over(1)),
    (close_over([1]), close_over([2])),
    (close_over((1, [1])), close_over((1, [2]))),
    (close_over_what_it_assigns(1), close_over_what_it_assigns(2)),
    (close_over_nothing_yet(), close_over_nothing_yet()),
    (Worker().work, Worker().work),
    (Worker(), Worker()),
    (partial(work, a=1, b=2), partial(work, b=2, a=1)),
    (partial(work, [1]), partial(work, [2])),
    (partial(work, a=[1]), partial(work, a=[2])),
]
DIFFERENT: list[tuple[Any, Any]] = [
    (work, other),
    (close_over(1), close_over(2)),
    (close_over(1), close_over(value=True)),
    (close_over((1, 2)), close_over((1, 3))),
    (close_over(Decimal(1)), close_over(Decimal("1.0"))),
    (with_default(1, 2), with_default(2, 2)),
    (with_default(1, 2), with_default(1, 3)),
    (partial(work, 1), partial(work, 2)),
    (partial(work, 1), partial(work, a=1)),
    (partial(work), work),
    (partial(work), partial(other)),
    (partial(close_over(1)), partial(close_over(2))),
    (lambda _s: 1, lambda _s: 2),
    (lambda s: s.one(), lambda s: s.two()),
    (lambda s: s + s, lambda s: s - s),
    (Worker(), Worker().work),
]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_the_same_work_has_one_fingerprint(one: Any, two: Any) -> None:
    assert fingerprint_work(one) == fingerprint_work(two)


@pytest.mark.parametrize(("one", "two"), DIFFERENT)
def test_another_work_has_another(one: Any, two: Any) -> None:
    assert fingerprint_work(one) != fingerprint_work(two)


def test_a_partial_is_hashed_in_one_form() -> None:
    parts = ["partial", "0=int:7", "a=str:'x'", f"{work.__module__}.{work.__qualname__}"]
    data = b"".join(len(part).to_bytes(8, "big") + part.encode() for part in parts)
    found = fingerprint_work(partial(work, 7, a="x"))
    assert found == hashlib.sha256(b"oplog/v1/request/work" + data).hexdigest()


def test_a_work_is_not_a_request_of_the_same_text() -> None:
    # The kind is hashed, too.
    name = f"{work.__module__}.{work.__qualname__}"
    data = len(name).to_bytes(8, "big") + name.encode()
    found = fingerprint_work(work)
    assert found == hashlib.sha256(b"oplog/v1/request/work" + data).hexdigest()
