"""Heads that are signed: whose are believed, how keys follow one another, what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from uuid import UUID

import pytest

from oplog.archive.archive import Archive
from oplog.archive.expectation import Expectation
from oplog.archive.format.canonical_json import encode_document
from oplog.archive.format.head import MAX_ENDORSEMENTS, Endorsement, Head, decode_head, make_first
from oplog.archive.format.path import LATEST, name_head
from oplog.archive.head_trust import HeadTrust
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.opening import open_archive
from oplog.crypto.signing_keyring import SigningKeyring
from oplog.crypto.trust import Trust
from oplog.errors import (
    ConfigurationError,
    ForeignArchiveError,
    HeadUnsignedError,
    ManifestInvalidError,
    OlderArchiveError,
    RevokedPublisherError,
    SignatureInvalidError,
    SignedForkError,
    SigningKeyMissingError,
    UnknownPublisherError,
)
from tests.archived import ARCHIVE_ID, LOG_ID, HandMade, make_records

pytestmark = pytest.mark.unit

KEYS, FOREIGN = SigningKeyring.generate(), SigningKeyring.generate()
FIRST = make_first(ARCHIVE_ID, LOG_ID, HandMade().head.origin)


def make_signed(keyring: SigningKeyring | None = KEYS, *, heads: int = 3) -> HandMade:
    """An archive with a segment, and so many heads."""
    made = HandMade(trust=HeadTrust(keyring=keyring))
    made.publish_many(heads)
    return made


def pin(*keys: str, revoked: tuple[str, ...] = (), log: UUID | None = None) -> HeadTrust:
    """What a reader believes that pins these."""
    return HeadTrust(trust=Trust(dict.fromkeys(keys, log), frozenset(revoked)))


def read(made: HandMade, trust: HeadTrust) -> Head:
    return Archive(made.store, trust=trust).read_head()


def put_over(made: HandMade, head: Head) -> None:
    made.store.put(name_head(head.number), head.encode())


# -- who is believed ----------------------------------------------------------------------


def test_who_pins_the_key_believes_its_heads() -> None:
    made = make_signed()
    assert made.head.publisher == KEYS.publisher
    assert read(made, pin(KEYS.publisher)) == made.head
    assert read(made, pin(FOREIGN.publisher, KEYS.publisher)) == made.head
    assert read(made, HeadTrust(keyring=KEYS)) == made.head


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(UnknownPublisherError, match="is not pinned") as caught:
        read(make_signed(FOREIGN), pin(KEYS.publisher))
    assert f"oplog trust add {FOREIGN.publisher}" in str(caught.value)


def test_no_signature_is_refused_where_one_is_pinned() -> None:
    with pytest.raises(HeadUnsignedError, match="is not signed, and a publisher is pinned"):
        read(make_signed(None), pin(KEYS.publisher))


def test_a_revoked_key_is_refused_by_everybody() -> None:
    made = make_signed()
    with pytest.raises(RevokedPublisherError, match="is revoked"):
        read(made, pin(FOREIGN.publisher, revoked=(KEYS.publisher,)))
    with pytest.raises(RevokedPublisherError, match="is revoked"):
        read(made, pin(revoked=(KEYS.publisher,)))


def test_where_the_only_key_was_revoked_no_other_is_believed() -> None:
    left = HeadTrust(trust=Trust().add(KEYS.publisher).revoke(KEYS.publisher))
    with pytest.raises(UnknownPublisherError):
        read(make_signed(FOREIGN), left)
    with pytest.raises(HeadUnsignedError):
        read(make_signed(None), left)


def test_a_key_that_is_pinned_for_another_log_is_refused() -> None:
    made = make_signed()
    assert read(made, pin(KEYS.publisher, log=LOG_ID)) == made.head
    with pytest.raises(ForeignArchiveError, match="pinned for the log"):
        read(made, pin(KEYS.publisher, log=ARCHIVE_ID))


@pytest.mark.parametrize("keyring", [None, KEYS], ids=["unsigned", "signed"])
def test_who_pins_nobody_is_warned_once(
    keyring: SigningKeyring | None, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_signed(keyring)
    archive = Archive(made.store)
    with caplog.at_level(logging.WARNING, "oplog.archive"):
        archive.read_head()
        archive.read_head()
    assert len(caplog.records) == 1
    told = "is not signed" if keyring is None else "no publisher is pinned"
    assert told in caplog.text
    caplog.clear()
    assert read(made, HeadTrust(unsigned=True)) == made.head
    assert read(made, pin(KEYS.publisher) if keyring else HeadTrust(unsigned=True)) == made.head
    assert caplog.text == ""


# -- what is under the signature ----------------------------------------------------------


def spell(document: dict[str, object]) -> bytes:
    """As a forger writes it who has no key: the hash is right, the signature of another head."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    return encode_document(rest | {"sha256": sha256(encode_document(rest)).hexdigest()})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("archive", str(LOG_ID)),
        ("log", str(LOG_ID)),
        ("generation", 7),
        ("epoch", 9),
        ("writer", "somebody"),
        ("origin", {"system_identifier": "1", "timeline": 1, "database": 1}),
        ("cursor", "x"),
        ("position", 77),
        ("recorded_at", 1),
        ("first_sequence", 2),
        ("horizon", 1 << 40),
        ("created_at", 1),
        ("types", {"path": "BLOB/" + "0" * 16 + "-" + "0" * 64, "types": 1, "keys": 1}),
        ("snapshots", []),
        ("branches", []),
        ("id", "n9"),
    ],
)
def test_no_member_can_be_changed(name: str, value: object) -> None:
    made = HandMade(trust=HeadTrust(keyring=KEYS))
    made.add_types()
    made.publish_many(3)
    document = json.loads(made.head.encode())
    if document[name] == value:
        document[name] = [] if isinstance(value, list) else "00000000-0000-7000-8000-000000000000"
    else:
        document[name] = value
    if document[name] == []:
        # What is an empty list already: forged with the one thing that fits there.
        document["writer"] = "forged"
    data = spell(document)
    with pytest.raises(ManifestInvalidError):
        decode_head(data, what="it")
    if name not in {"log", "first_sequence"}:
        # Only the signature tells.
        with pytest.raises(SignatureInvalidError, match="does not have the signature"):
            decode_head(data, what="it")


def test_a_signature_of_another_head_or_key_is_none() -> None:
    made = make_signed()
    heads = [made.store.get(name_head(number), most=1 << 20) or b"" for number in (2, 3)]
    older, newest = (decode_head(data, what="it") for data in heads)
    for forged in (
        replace(newest, signature=older.signature),
        replace(newest, publisher=FOREIGN.publisher),
        replace(newest, signature="00" * 64),
        replace(newest, publisher="00" * 32),
        replace(newest, publisher="ff" * 32),
    ):
        with pytest.raises(SignatureInvalidError):
            forged.encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda h: replace(h, publisher=None),
        lambda h: replace(h, signature=None),
        lambda h: replace(h, publisher=None, signature=None),
    ],
    ids=["no publisher", "no signature", "neither, but endorsements"],
)
def test_a_publisher_has_a_signature(change: Callable[[Head], Head]) -> None:
    first, second = rotate(1)
    base = HeadTrust(keyring=first).sign(replace(FIRST, number=1, nonce="a"), base=FIRST)
    linked = HeadTrust(keyring=second).sign(
        replace(base, number=2, previous=base.link()), base=base
    )
    assert linked.endorsements
    with pytest.raises(ManifestInvalidError, match="and not both"):
        change(linked).encode()


# -- keys that follow one another ---------------------------------------------------------


def rotate(times: int) -> list[SigningKeyring]:
    """A keyring as it was, and after each rotation."""
    first = SigningKeyring.generate()
    kept = [SigningKeyring(first._text, source="test")]
    for _ in range(times):
        first.rotate()
        kept.append(SigningKeyring(first._text, source="test"))
    return kept


def publish_with(keyrings: list[SigningKeyring]) -> HandMade:
    """One archive, each head signed by the next keyring."""
    made = HandMade()
    made.add_segment()
    for keyring in keyrings:
        made.trust = HeadTrust(keyring=keyring)
        made.publish()
    return made


def test_who_pins_the_old_key_believes_the_one_that_it_signed() -> None:
    keyrings = rotate(3)
    made = publish_with(keyrings)
    keys = [keyring.publisher for keyring in keyrings]
    assert [link.publisher for link in made.head.endorsements] == keys[1:]
    for key in keys:
        assert read(made, pin(key)) == made.head
    # Without the signatures of old keys, nobody does.
    with pytest.raises(UnknownPublisherError):
        read(make_signed(keyrings[-1]), pin(keys[0]))


def test_a_revoked_key_vouches_for_nobody() -> None:
    keyrings = rotate(2)
    made = publish_with(keyrings)
    keys = [keyring.publisher for keyring in keyrings]
    with pytest.raises(RevokedPublisherError, match=f"{keys[1]} is revoked"):
        read(made, pin(keys[0], revoked=(keys[1],)))
    with pytest.raises(UnknownPublisherError):
        read(made, pin(FOREIGN.publisher))
    assert read(made, pin(keys[2], revoked=(keys[0], keys[1]))) == made.head


def test_a_key_that_was_replaced_signs_no_more() -> None:
    first, second = rotate(1)
    made = publish_with([first, second])
    thief = HandMade(made.store, head=made.head, published=made.published)
    stolen = replace(made.head, number=3, nonce="x", previous=made.head.link(), endorsements=())
    signed = HeadTrust(keyring=first).sign(stolen, base=replace(FIRST, publisher=first.publisher))
    put_over(thief, signed)
    with pytest.raises(RevokedPublisherError, match="had replaced in head 2"):
        read(made, pin(first.publisher))


def test_endorsements_have_to_lead_to_the_publisher() -> None:
    keyrings = rotate(2)
    made = publish_with(keyrings)
    links = made.head.endorsements
    for wrong in (links[:1], links[::-1], (links[0], links[0])):
        with pytest.raises(ManifestInvalidError, match="do not lead to its publisher"):
            HeadTrust(keyring=keyrings[-1]).sign(
                replace(made.head, endorsements=wrong),
                base=replace(made.head, endorsements=wrong),
            ).encode()


def test_a_forged_endorsement_vouches_for_nobody() -> None:
    first, second = rotate(1)
    made = publish_with([first, second])
    (link,) = made.head.endorsements
    forged = (relink(link, by=KEYS.publisher),)
    head = HeadTrust(keyring=second).sign(
        replace(made.head, endorsements=forged), base=replace(made.head, endorsements=forged)
    )
    put_over(made, head)
    with pytest.raises(UnknownPublisherError):
        read(made, pin(KEYS.publisher))


def relink(link: Endorsement, *, by: str) -> Endorsement:
    return Endorsement(by=by, publisher=link.publisher, signature=link.signature)


def test_the_oldest_endorsements_give_way() -> None:
    keyrings = rotate(MAX_ENDORSEMENTS + 2)
    made = publish_with(keyrings)
    assert len(made.head.endorsements) == MAX_ENDORSEMENTS
    assert read(made, pin(keyrings[2].publisher)) == made.head
    with pytest.raises(UnknownPublisherError):
        read(made, pin(keyrings[1].publisher))


# -- what the publisher may build on ------------------------------------------------------


def test_without_its_key_a_signed_archive_is_not_gone_on_with() -> None:
    base = make_signed().head
    with pytest.raises(SigningKeyMissingError, match="there is no signing keyring"):
        HeadTrust().require_key(base, url="file:///x")
    with pytest.raises(SigningKeyMissingError, match="does not have"):
        HeadTrust(keyring=FOREIGN).require_key(base, url="file:///x")
    HeadTrust(keyring=KEYS).require_key(base, url="file:///x")
    lost = HeadTrust(keyring=FOREIGN, replace_publisher=True)
    lost.require_key(base, url="file:///x")
    assert lost.decode(base.encode(), what="it", url="") == base


def test_an_older_copy_of_the_keyring_does_not_sign() -> None:
    first, second = rotate(1)
    base = publish_with([first, second]).head
    with pytest.raises(SigningKeyMissingError, match="does not have"):
        HeadTrust(keyring=first).require_key(base, url="file:///x")


def test_a_revoked_key_does_not_sign() -> None:
    trust = HeadTrust(keyring=KEYS, trust=Trust(revoked=frozenset({KEYS.publisher})))
    with pytest.raises(RevokedPublisherError, match="is revoked"):
        trust.require_key(FIRST, url="file:///x")


def test_an_archive_that_begins_unsigned_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    trust = HeadTrust()
    trust.require_key(FIRST, url="s3://bucket/x")
    trust.require_key(FIRST, url="s3://bucket/x")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "s3://bucket/x begins unsigned" in record.getMessage()
    caplog.clear()
    HeadTrust(unsigned=True).require_key(FIRST, url="s3://bucket/x")
    HeadTrust(keyring=KEYS).require_key(FIRST, url="s3://bucket/x")
    HeadTrust().require_key(replace(FIRST, number=1), url="s3://bucket/x")
    assert caplog.records == []


def test_who_pins_a_publisher_does_not_begin_unsigned() -> None:
    with pytest.raises(SigningKeyMissingError):
        pin(KEYS.publisher).require_key(FIRST, url="file:///x")


def test_a_signed_archive_does_not_become_an_unsigned_one() -> None:
    made = make_signed()
    made.trust = HeadTrust()
    made.publish()
    with pytest.raises(HeadUnsignedError, match="head 3 before it is"):
        read(made, HeadTrust())


# -- heads of two publishers, and older ones ----------------------------------------------


def test_two_signed_heads_of_one_number_are_a_fork() -> None:
    made = make_signed()
    archive = Archive(made.store, trust=pin(KEYS.publisher))
    archive.read_head()
    other = HeadTrust(keyring=KEYS).sign(replace(made.head, writer="another"), base=made.head)
    put_over(made, other)
    with pytest.raises(SignedForkError, match="two heads 3") as caught:
        archive.read_head()
    assert caught.value.heads == (made.head.encode(), other.encode())
    # A new reader does not know the other one: it has to be told what to expect.
    assert read(made, pin(KEYS.publisher)) == other


def test_a_head_on_another_signed_one_than_is_there_is_a_fork() -> None:
    made = make_signed()
    before = decode_head(made.store.get(name_head(2), most=1 << 20) or b"", what="it")
    other = HeadTrust(keyring=KEYS).sign(replace(before, writer="another"), base=before)
    put_over(made, other)
    with pytest.raises(SignedForkError, match="two heads 2") as caught:
        read(made, pin(KEYS.publisher))
    assert caught.value.heads == (other.encode(), made.head.encode())
    # Which nobody forges who has no key.
    put_over(made, HeadTrust(keyring=FOREIGN).sign(other, base=FIRST))
    with pytest.raises(ManifestInvalidError, match="is not the head that"):
        read(made, pin(KEYS.publisher))


def test_the_hint_proves_nothing() -> None:
    made = make_signed(heads=5)
    expected = str(Expectation.of(made.head))
    older = MemoryStore("test")
    for info in made.store.list(""):
        if info.path not in {name_head(4), name_head(5), LATEST}:
            older.put(info.path, made.store.get(info.path, most=1 << 20) or b"")
    older.put(LATEST, f"{0:016x}\n{3:016x}\n".encode())
    # The records are the same, and so an older head is as good.
    demand = Expectation.parse(expected).require
    assert Archive(older, trust=pin(KEYS.publisher), demand=demand).read_head().number == 3


@pytest.fixture
def grown() -> tuple[HandMade, list[Head]]:
    """Five heads, each with a segment of two records."""
    made = HandMade(trust=HeadTrust(keyring=KEYS))
    heads = []
    for _ in range(5):
        made.add_segment(2)
        heads.append(made.publish())
    return made, heads


def expecting(made: HandMade, text: str) -> Head:
    demand = Expectation.parse(text).require
    return Archive(made.store, trust=pin(KEYS.publisher), demand=demand).read_head()


def test_an_older_archive_is_refused_by_what_is_expected(
    grown: tuple[HandMade, list[Head]],
) -> None:
    made, heads = grown
    for head in heads:
        assert expecting(made, str(Expectation.of(head))) == made.head
    # In the middle of a segment too.
    chain = Expectation.parse(f"3:{'00' * 32}")
    with pytest.raises(OlderArchiveError, match="other records up to sequence 3"):
        chain.require(Archive(made.store, trust=pin(KEYS.publisher)), made.head)
    expected = str(Expectation.of(made.head))
    for number in (5, 4):
        made.store.delete(name_head(number))
        with pytest.raises(OlderArchiveError, match="sequence 10 at least, and holds records up"):
            expecting(made, expected)
    for number in (3, 2, 1):
        made.store.delete(name_head(number))
    with pytest.raises(OlderArchiveError, match="holds nothing"):
        expecting(made, expected)


def test_another_history_is_refused_by_what_is_expected(
    grown: tuple[HandMade, list[Head]],
) -> None:
    records = make_records(11)
    whole, parted = (HandMade(trust=HeadTrust(keyring=KEYS)) for _ in range(2))
    whole.add_records(records)
    whole.publish()
    for first, last in ((0, 3), (3, 10)):
        parted.add_records(records[first:last])
        parted.publish()
    # The same records in other segments are the same; the eleventh is more.
    assert expecting(whole, str(Expectation.of(parted.head))) == whole.head
    with pytest.raises(OlderArchiveError, match="sequence 11 at least"):
        expecting(parted, str(Expectation.of(whole.head)))
    with pytest.raises(OlderArchiveError, match="other records up to sequence 10"):
        expecting(whole, str(Expectation.of(grown[0].head)))


@pytest.mark.parametrize(
    "text", ["", "7", "x:y", f"1:{'0' * 63}", f"-1:{'0' * 64}", f"1:{'G' * 64}"]
)
def test_what_is_expected_has_one_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not SEQUENCE:HASH"):
        Expectation.parse(text)
    if text:
        with pytest.raises(ConfigurationError, match="is not SEQUENCE:HASH"):
            open_archive("memory://", expect_at_least=text)
