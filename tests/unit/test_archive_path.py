"""Names of objects: an allow-list, so that no document can point anywhere else."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.archive.format.path import (
    BLOB,
    COLLECTED,
    HEAD,
    INDEX,
    LATEST,
    LOG,
    MAX_HINT_BYTES,
    MAX_NUMBER,
    PIN,
    SNAPSHOT,
    make_mint,
    name_content,
    name_head,
    name_pin,
    parse_content,
    parse_head,
    parse_hint,
    write_hint,
)
from oplog.errors import ManifestInvalidError

pytestmark = pytest.mark.unit

DIGITS, HASH = "0123456789abcdef", "0123456789abcdef" * 4
GOOD = f"LOG/{DIGITS}-{HASH}"


def test_names_are_those_of_every_archive_that_is_stored() -> None:
    assert (HEAD, LOG, INDEX, SNAPSHOT, BLOB) == ("HEAD", "LOG", "INDEX", "SNAPSHOT", "BLOB")
    assert (PIN, LATEST, COLLECTED) == ("PIN", "LATEST", "COLLECTED")
    assert name_head(10) == "HEAD/000000000000000a"
    assert parse_head("HEAD/7ffffffffffffffe") == (1 << 63) - 2


@given(st.sampled_from((LOG, INDEX, SNAPSHOT, BLOB)), st.integers(0, MAX_NUMBER), st.binary())
def test_names_of_content_are_read_as_made(kind: str, number: int, data: bytes) -> None:
    path = name_content(kind, number, data=data)
    assert parse_content(path) == parse_content(path, kind)
    assert parse_content(path) == (kind, number, sha256(data).digest())


@given(st.integers(1, MAX_NUMBER - 1))
def test_names_of_heads_are_read_as_made(number: int) -> None:
    assert parse_head(name_head(number)) == number


@pytest.mark.parametrize(
    "path",
    [
        "",
        f"../{GOOD}",
        f"LOG/../LOG/{DIGITS}-{HASH}",
        f"/{GOOD}",
        f"/etc/{GOOD}",
        f"C:\\{GOOD}",
        f"LOG\\{DIGITS}-{HASH}",
        f"{GOOD}\0",
        f"{GOOD}\n",
        f"\n{GOOD}",
        f"{GOOD}/",
        f"{GOOD}.tmp",
        f" {GOOD}",
        GOOD.upper(),
        f"log/{DIGITS}-{HASH}",
        f"LOG/{DIGITS.upper()}-{HASH}",
        f"LOG/{DIGITS}-{HASH.upper()}",
        f"LOG/{DIGITS}0-{HASH}",
        f"LOG/{DIGITS[1:]}-{HASH}",
        f"LOG/{DIGITS}-{HASH}0",
        f"LOG/{DIGITS}-{HASH[1:]}",
        "LOG/" + "\u0660" * 16 + f"-{HASH}",
        "LOG/" + "\uff10" * 16 + f"-{HASH}",
        f"LOG/-{DIGITS[1:]}-{HASH}",
        f"LOG//{DIGITS}-{HASH}",
        f"LOG/{DIGITS}_{HASH}",
        f"PIN/{DIGITS}-{HASH}",
        f"LOG/{'0' * 100_000}-{HASH}",
    ],
)
def test_any_other_name_is_refused(path: str) -> None:
    with pytest.raises(ManifestInvalidError, match="cannot name") as caught:
        parse_content(path)
    assert len(str(caught.value)) < 1000


def test_content_of_another_kind_is_refused() -> None:
    assert parse_content(GOOD, INDEX, LOG).kind == LOG
    with pytest.raises(ManifestInvalidError, match="cannot name INDEX or BLOB"):
        parse_content(GOOD, INDEX, BLOB)


@pytest.mark.parametrize(
    "path",
    [
        "HEAD/",
        f"HEAD/{'0' * 15}",
        f"HEAD/{'0' * 17}",
        f"HEAD/{'0' * 16}",
        f"HEAD/{'0' * 15}A",
        f"HEAD/{'0' * 15}1\n",
        f"HEAD/{'0' * 15}1/",
        f"HEAD/{'0' * 15}\u0661",
        f"HEAD/{'f' * 16}",
        f"HEAD/7{'f' * 15}",
        f"PIN/{'0' * 15}1",
    ],
)
def test_what_is_no_head_has_no_number(path: str) -> None:
    assert parse_head(path) is None


@given(st.integers(0, MAX_NUMBER), st.integers(1, MAX_NUMBER - 1))
def test_a_hint_names_the_head_that_was_written_to_it(snapshot: int, head: int) -> None:
    data = write_hint(snapshot, head)
    assert data == b"%016x\n%016x\n" % (snapshot, head)
    assert len(data) < MAX_HINT_BYTES
    assert parse_hint(data) == head


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"~",
        write_hint(1, 0),
        write_hint(1, MAX_NUMBER),
        write_hint(1, 2)[:-1],
        write_hint(1, 2) + b"\n",
        write_hint(1, 2)[1:],
        write_hint(1, 2).replace(b"\n", b" "),
        write_hint(1, 10).upper(),
        write_hint(1, 2) * 2,
        "\u0660".encode() * 16 + b"\n" + b"0" * 15 + b"1\n",
        b"\xff" * 34,
    ],
)
def test_what_no_publisher_wrote_names_no_head(data: bytes | None) -> None:
    assert parse_hint(data) is None


def test_pins_are_plain_words() -> None:
    assert name_pin("before-2.0_a") == "PIN/before-2.0_a"
    for name in ("", ".", "..", "a/b", "a\n", "-a", "é", "a" * 101, "a\0", "a b"):
        with pytest.raises(ManifestInvalidError, match="cannot name a pin"):
            name_pin(name)


@given(st.integers(0, (1 << 31) - 1), st.integers(0, (1 << 32) - 1))
def test_a_mint_is_its_epochs_own(epoch: int, counter: int) -> None:
    mint = make_mint(epoch, counter)
    assert mint >> 32 == epoch
    assert parse_content(name_content(BLOB, mint, data=b"")).number == mint


@pytest.mark.parametrize(("epoch", "counter"), [(1, 1 << 32), (1, -1), (1 << 31, 0), (-1, 0)])
def test_a_mint_out_of_range_is_refused(epoch: int, counter: int) -> None:
    with pytest.raises(ValueError, match="cannot mint"):
        make_mint(epoch, counter)
