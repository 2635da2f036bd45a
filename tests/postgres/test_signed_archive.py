"""An archive that is signed: published, forged, repaired, collected, restored, keys replaced."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Archive, open_archive
from oplog.archive.format.head import MAX_HEAD_BYTES, HeadLink, decode_head
from oplog.archive.format.path import COLLECTED, name_head, name_pin
from oplog.archive.head_trust import HeadTrust
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.probe import Verdict
from oplog.cli import main
from oplog.crypto.signing_keyring import SIGNING_KEYRING, SigningKeyring
from oplog.crypto.trust import TRUST, Trust
from oplog.errors import (
    ArchiveError,
    HeadUnsignedError,
    ManifestInvalidError,
    OlderArchiveError,
    RevokedPublisherError,
    SigningKeyMissingError,
    UnknownPublisherError,
)
from oplog.upkeep.retention import Retention
from tests.archived import HandMade
from tests.attacked import THIEF, empty_log, leave_unsigned, reserve_nothing, sign_as_thief
from tests.postgres.archived import dump_all, dump_objects, restore_into
from tests.postgres.keeping import add_task, harmful
from tests.postgres.replay_models import Bench, make_bench
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres

KEYS = SigningKeyring.generate()


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def archive(bench: Bench) -> Archive:
    """Two heads, signed."""
    archive = open_signed(KEYS)
    for _ in range(2):
        bench.write(add_task)
        bench.log.sync(bench.engine, archive)
    return archive


def open_signed(
    keyring: SigningKeyring | None, store: Any = None, *, pins: Trust | None = None, **options: bool
) -> Archive:
    """The store as a process opens it that has seen nothing before."""
    trust = HeadTrust(keyring=keyring, trust=pins, **options)
    return Archive(store or MemoryStore("test"), verdict=Verdict.ATOMIC, trust=trust)


def open_pinned(archive: Archive, *keys: str, revoked: tuple[str, ...] = ()) -> Archive:
    pins = Trust(dict.fromkeys(keys or (KEYS.publisher,)), frozenset(revoked))
    return open_signed(None, archive.store, pins=pins)


def forge(archive: Archive, *, signed: bool) -> bytes:
    """A head after the newest one, which says that nothing ever was."""
    head = archive.read_head()
    forged = replace(head, number=head.number + 1, previous=head.link(), nonce="x", types=None)
    data = (sign_as_thief if signed else leave_unsigned)(forged, head)
    archive.store.put(name_head(forged.number), data)
    return data


def test_every_publication_is_signed_and_restored_by_who_pins_the_key(
    bench: Bench, spare_engine: Engine, archive: Archive
) -> None:
    bench.log.snapshot(bench.engine, archive)
    bench.log.collect(bench.engine, archive, retention=Retention(), grace_seconds=0)
    heads = [
        decode_head(data, what=path)
        for path, data in dump_objects(archive).items()
        if path.startswith("HEAD/")
    ]
    assert {head.publisher for head in heads} == {KEYS.publisher}
    assert bench.log.check(open_pinned(archive), bench.engine).ok
    target = make_target(spare_engine, bench)
    restore_into(target, open_pinned(archive))
    assert dump_all(target) == dump_all(bench)


@pytest.mark.parametrize("signed", [True, False], ids=["by a thief", "unsigned"])
def test_a_forged_head_stops_everybody_and_is_published_over(
    bench: Bench, spare_engine: Engine, archive: Archive, *, signed: bool
) -> None:
    forged = forge(archive, signed=signed)
    before = dump_objects(archive)
    error = UnknownPublisherError if signed else HeadUnsignedError
    target = make_target(spare_engine, bench)
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    empty = dump_all(target)
    with engine.connect() as connection:
        with pytest.raises(error):
            target.log.restore(open_pinned(archive), connection)
        with pytest.raises(error):
            target.log.follow(open_pinned(archive), connection)
    with pytest.raises(error):
        target.log.recover(open_pinned(archive), engine)
    assert dump_all(target) == empty
    report = bench.log.check(open_pinned(archive))
    assert name_head(3) in {one.path for one in harmful(report)}
    # The publisher does not sign what it does not believe, and deletes nothing because of it.
    bench.write(add_task)
    with pytest.raises(error):
        bench.log.sync(bench.engine, open_signed(KEYS, archive.store))
    with pytest.raises(error):
        bench.log.collect(
            bench.engine,
            open_signed(KEYS, archive.store),
            retention=Retention(),
            grace_seconds=0,
        )
    assert dump_objects(archive) == before
    bench.log.resync(bench.engine, open_signed(KEYS, archive.store))
    bench.log.sync(bench.engine, open_signed(KEYS, archive.store))
    assert archive.store.get(name_head(3), most=1 << 20) == forged
    restore_into(target, open_pinned(archive))
    assert dump_all(target) == dump_all(bench)


@pytest.mark.parametrize("count", [2, 3])
def test_several_forged_heads_are_published_over(
    bench: Bench, spare_engine: Engine, archive: Archive, *, count: int
) -> None:
    honest = archive.read_head()
    for number in range(honest.number, honest.number + count):
        # Each names the bytes before it, as a publisher's would.
        below = archive.store.get(name_head(number), most=MAX_HEAD_BYTES)
        assert below is not None
        link = HeadLink(number, sha256(below).digest())
        forged = replace(honest, number=number + 1, previous=link, nonce="x", types=None)
        archive.store.put(name_head(number + 1), sign_as_thief(forged, honest))
    before = dump_objects(archive)
    planned = bench.log.resync(bench.engine, open_signed(KEYS, archive.store), dry_run=True)
    assert planned.ok
    assert dump_objects(archive) == before
    done = bench.log.resync(bench.engine, open_signed(KEYS, archive.store))
    assert done.ok
    assert done.head == planned.head == honest.number + count + 1
    bench.write(add_task)
    bench.log.sync(bench.engine, open_signed(KEYS, archive.store))
    report = bench.log.check(open_pinned(archive), bench.engine)
    assert harmful(report) == []
    target = make_target(spare_engine, bench)
    restore_into(target, open_pinned(archive))
    assert dump_all(target) == dump_all(bench)


def test_several_forged_heads_are_left_where_the_database_published_others(
    bench: Bench, archive: Archive
) -> None:
    honest = archive.read_head()
    # No new record: only the head's number tells that it was another.
    bench.log.snapshot(bench.engine, open_signed(KEYS, archive.store))
    published = open_signed(KEYS, archive.store).read_head().number
    assert published > honest.number
    for number in range(honest.number + 1, published + 2):
        archive.store.put(name_head(number), b"?")
    before = dump_objects(archive)
    report = bench.log.resync(bench.engine, open_signed(KEYS, archive.store))
    assert not report.ok
    assert dump_objects(archive) == before


def test_a_forged_pin_stops_the_collection(bench: Bench, archive: Archive) -> None:
    head = archive.read_head()
    archive.store.put(name_pin(f"x-{head.number:016x}"), sign_as_thief(head, head))
    before = dump_objects(archive)
    with pytest.raises(UnknownPublisherError):
        bench.log.collect(
            bench.engine,
            open_signed(KEYS, archive.store),
            retention=Retention(),
            grace_seconds=0,
        )
    assert dump_objects(archive) == before
    assert not bench.log.check(open_pinned(archive)).ok


def test_without_the_key_nothing_is_put(bench: Bench, archive: Archive) -> None:
    bench.write(add_task)
    before = dump_objects(archive)
    for keyring, pins in (
        (None, None),
        (None, Trust({KEYS.publisher: None})),
        (THIEF, Trust({KEYS.publisher: None})),
    ):
        with pytest.raises(SigningKeyMissingError):
            bench.log.sync(bench.engine, open_signed(keyring, archive.store, pins=pins))
    with pytest.raises(UnknownPublisherError):
        bench.log.sync(bench.engine, open_signed(THIEF, archive.store))
    assert dump_objects(archive) == before


def test_a_key_that_was_rotated_is_published_without_new_records(
    bench: Bench, spare_engine: Engine
) -> None:
    keyring = SigningKeyring.generate()
    archive = open_signed(keyring)
    bench.write(add_task)
    bench.log.sync(bench.engine, archive)
    old = keyring.publisher
    new = keyring.rotate()
    assert bench.log.sync(bench.engine, archive).entries == 0
    assert open_pinned(archive, old).read_head().publisher == new
    number = archive.read_head().number
    bench.log.sync(bench.engine, archive)
    assert archive.read_head().number == number
    target = make_target(spare_engine, bench)
    with pytest.raises(RevokedPublisherError):
        restore_into(target, open_pinned(archive, old, revoked=(new,)))
    restore_into(target, open_pinned(archive, new, revoked=(old,)))
    assert dump_all(target) == dump_all(bench)


def test_a_lost_key_is_replaced_once_it_is_said(bench: Bench, archive: Archive) -> None:
    new = SigningKeyring.generate()
    again = open_signed(new, archive.store, replace_publisher=True)
    bench.log.sync(bench.engine, again)
    with pytest.raises(UnknownPublisherError):
        open_pinned(archive).read_head()
    # It was said for one publication, not for all that follow.
    forged = forge(open_pinned(archive, new.publisher), signed=True)
    with pytest.raises(UnknownPublisherError):
        bench.log.sync(bench.engine, again)
    archive.store.delete(name_head(decode_head(forged, what="it").number))
    # The head before was signed by the old key: it is named by one that is believed.
    assert bench.log.check(open_pinned(archive, new.publisher), bench.engine).ok
    assert open_pinned(archive, new.publisher).read_head().publisher == new.publisher
    bench.write(add_task)
    bench.log.sync(bench.engine, open_signed(new, archive.store))
    assert bench.log.check(open_pinned(archive, new.publisher), bench.engine).ok


def test_an_unsigned_archive_is_signed_once_it_is_said(bench: Bench) -> None:
    archive = open_signed(None)
    bench.write(add_task)
    bench.log.sync(bench.engine, archive)
    before = dump_objects(archive)
    with pytest.raises(HeadUnsignedError):
        bench.log.sync(bench.engine, open_signed(KEYS, archive.store))
    assert dump_objects(archive) == before
    bench.log.sync(bench.engine, open_signed(KEYS, archive.store, replace_publisher=True))
    assert open_pinned(archive).read_head().publisher == KEYS.publisher
    assert bench.log.check(open_pinned(archive), bench.engine).ok


def test_old_heads_of_a_revoked_key_are_collected(bench: Bench, archive: Archive) -> None:
    new = SigningKeyring.generate()
    pins = Trust(revoked=frozenset({KEYS.publisher}))
    with pytest.raises(RevokedPublisherError):
        bench.log.sync(bench.engine, open_signed(new, archive.store, pins=pins))
    again = open_signed(new, archive.store, pins=pins, replace_publisher=True)
    bench.log.sync(bench.engine, again)
    for _ in range(2):
        bench.write(add_task)
        bench.log.sync(bench.engine, open_signed(new, archive.store, pins=pins))
    report = bench.log.collect(
        bench.engine,
        open_signed(new, archive.store, pins=pins),
        retention=Retention(),
        grace_seconds=0,
    )
    assert (report.notes, report.refused) == ((), None)
    assert archive.store.head(COLLECTED) is not None
    assert archive.store.head(name_head(1)) is None


def test_a_head_in_its_grace_that_was_exchanged_keeps_heads_as_they_are(bench: Bench) -> None:
    # With real times, so that all heads are within their grace.
    archive = open_signed(KEYS, MemoryStore("test", clock=lambda: datetime.now(UTC)))
    for _ in range(4):
        bench.write(add_task)
        bench.log.sync(bench.engine, archive)
    old = decode_head(archive.store.get(name_head(2), most=1 << 20) or b"", what="it")
    archive.store.put(name_head(2), leave_unsigned(old, old))
    report = bench.log.collect(
        bench.engine, open_signed(KEYS, archive.store), retention=Retention(), grace_seconds=3600
    )
    assert name_head(1) not in report.paths
    assert any("is not the head that" in note for note in report.notes)


def test_a_head_that_says_nothing_ever_was_does_not_make_all_garbage(bench: Bench) -> None:
    """Where nothing is signed, the collection is held to what the database has published."""
    archive = open_signed(None)
    for _ in range(3):
        bench.write(add_task)
        bench.log.sync(bench.engine, archive)
    bench.log.snapshot(bench.engine, archive)
    head = archive.read_head()
    made = dict(dump_objects(archive))
    for forge_head, error in ((empty_log, "does not hold"), (reserve_nothing, "names 0 types")):
        forged = replace(
            forge_head(archive, head, made),
            number=head.number + 1,
            previous=head.link(),
            nonce="forged",
        )
        archive.store.put(name_head(forged.number), forged.encode())
        before = dump_objects(archive)
        with pytest.raises(ManifestInvalidError, match=error):
            bench.log.collect(
                bench.engine,
                open_signed(None, archive.store),
                retention=Retention(),
                grace_seconds=0,
            )
        assert dump_objects(archive) == before


# -- the program --------------------------------------------------------------------------


def test_the_program_signs_pins_and_expects(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPLOG_DATABASE_URL", bench.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("OPLOG_APP", "reflected")
    monkeypatch.setenv("OPLOG_PLAINTEXT", "1")
    monkeypatch.setenv("OPLOG_ARCHIVE_URL", f"file://{tmp_path}/archive")
    monkeypatch.setenv(SIGNING_KEYRING, str(tmp_path / "signing.json"))
    monkeypatch.setenv(TRUST, str(tmp_path / "trust.json"))

    def ask(*arguments: str, code: int = 0) -> Any:
        assert main([*arguments, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    monkeypatch.delenv(TRUST)
    key = ask("publisher", "generate", "--file", str(tmp_path / "signing.json"))["current"]
    bench.write(add_task)
    expected = ask("sync")["expect_at_least"]
    assert expected.startswith("1:")
    monkeypatch.setenv(TRUST, str(tmp_path / "trust.json"))
    ask("trust", "add", key)
    monkeypatch.delenv(SIGNING_KEYRING)
    assert ask("check", "--alone", "--expect-at-least", expected)["ok"]
    assert not ask("check", "--alone", "--expect-at-least", f"9{expected}", code=3)["ok"]
    refused = ask("restore", "--expect-at-least", f"9{expected}", code=3)
    assert refused["error"] == OlderArchiveError.__name__
    assert ask("sync", code=12)["error"] == SigningKeyMissingError.__name__
    ask("trust", "revoke", key)
    assert ask("restore", code=3)["error"] == RevokedPublisherError.__name__
    assert issubclass(OlderArchiveError, ArchiveError)
    assert issubclass(RevokedPublisherError, ManifestInvalidError)


@pytest.mark.parametrize("command", [["check", "--alone"], ["restore", "--yes"]], ids=" ".join)
def test_the_program_keeps_both_heads_of_a_fork(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    engine: Engine,
) -> None:
    (tmp_path / "plain_log.py").write_text(
        "from oplog import Oplog, TypeCatalog\nlog = Oplog(TypeCatalog(), plaintext=True)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    url = (tmp_path / "archive").as_uri()
    keys = tmp_path / "signing.json"
    KEYS.save(keys)
    archive = open_archive(url, signing_keyring=KEYS)
    made = HandMade(trust=archive.trust)
    made.publish_many(3)
    for path, data in dump_objects(Archive(made.store)).items():
        archive.store.put(path, data)
    before = decode_head(archive.store.get(name_head(2), most=MAX_HEAD_BYTES) or b"", what="it")
    other = HeadTrust(keyring=KEYS).sign(replace(before, writer="another"), base=before)
    archive.store.put(name_head(2), other.encode())
    options = ["--app", "plain_log:log", "--archive", url, "--signing-keyring", str(keys)]
    database = ["--database", engine.url.render_as_string(hide_password=False)]
    assert main([*options, *database, *command]) == 3
    assert "both heads are kept" in capsys.readouterr().err
    kept = sorted((tmp_path / "configuration/oplog/evidence").glob("*.head"))
    assert {one.read_bytes() for one in kept} == {other.encode(), made.head.encode()}
