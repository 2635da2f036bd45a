"""Every proof of the demonstration fails when what it proves is not so."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from examples.demo import bank, commits, disaster, interruption, tampering
from examples.demo.database import Database, dispose, make_keys, open_database
from examples.demo.history import Listing, read_bundled
from examples.demo.interruption import Death, check_shipments
from examples.demo.models import PARCELS, Base, Parcel, Shipment
from examples.demo.narration import Narrator, ProofFailedError
from examples.demo.teller import Errand, Teller, draw_errands
from oplog import Archive, open_archive
from oplog.errors import ForeignServerError

unit = pytest.mark.unit
postgres = pytest.mark.postgres


@pytest.fixture
def narrator() -> Narrator:
    return Narrator(io.StringIO(), colours=False)


@pytest.fixture
def database(database_url: URL, tmp_path: Path) -> Iterator[Database]:
    make_keys(tmp_path)
    url = database_url.render_as_string(hide_password=False)
    database = open_database(url, tmp_path, name="test")
    Base.metadata.create_all(database.engine)
    yield database
    dispose(database)


@pytest.fixture
def opened(database: Database) -> Database:
    """The bank after one transfer."""
    bank.open_bank(database)
    with database.sessions.begin() as session:
        teller = Teller(database, name="teller-1")
        teller.attempts = 1  # not the first one, which waits for the others
        assert teller.transfer(session, Errand(1, 3, Decimal("12.50"), "rent"))
    return database


def change(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.text(statement))


@postgres
def test_what_is_true_is_proved(opened: Database, narrator: Narrator) -> None:
    history = read_bundled("a test")
    commits.load_history(opened, narrator, history=history)
    commits.prove_commits(opened, narrator, history=history, replays=3)
    bank.prove_money(opened, narrator, made=1)
    bank.prove_replay(opened, narrator)
    bank.prove_history(opened, narrator)
    tampering.prove_detection(opened, narrator)
    assert len(narrator.proved) == 10


@postgres
def test_another_listing_is_noticed(database: Database, narrator: Narrator) -> None:
    history = read_bundled("a test")
    commits.load_history(database, narrator, history=history)

    def list_with_one_wrong(commit: str) -> Listing:
        files = dict(history.list_files(commit))
        files["README.md"] = ("100755", files["README.md"][1])
        return files

    wrong = replace(history, list_files=list_with_one_wrong)
    with pytest.raises(ProofFailedError, match=r"1 files differ .*'README\.md'"):
        commits.prove_commits(database, narrator, history=wrong, replays=1)


@postgres
@pytest.mark.parametrize(
    ("statement", "made"),
    [
        ("UPDATE account SET balance = balance + 0.01 WHERE id = 2", 1),
        # The sum stays: each account has to be explained as well.
        ("UPDATE account SET balance = balance + id - 3 WHERE id IN (2, 4)", 1),
        ("SELECT 1", 2),
    ],
)  # fmt: skip
def test_money_from_nowhere_is_noticed(
    opened: Database, narrator: Narrator, statement: str, made: int
) -> None:
    change(opened, statement)
    with pytest.raises(ProofFailedError):
        bank.prove_money(opened, narrator, made=made)


@postgres
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE account SET owner = 'Eve' WHERE id = 2",
        "DELETE FROM account WHERE id = 8",
        "INSERT INTO account VALUES (99, 'Eve', 0)",
    ],
)
def test_a_row_that_replay_does_not_give_is_noticed(
    opened: Database, narrator: Narrator, statement: str
) -> None:
    change(opened, statement)
    with pytest.raises(ProofFailedError, match="differ"):
        bank.prove_replay(opened, narrator)


@postgres
def test_a_change_without_history_is_noticed(opened: Database, narrator: Narrator) -> None:
    change(opened, "INSERT INTO transfer (source_id, target_id, amount) VALUES (1, 2, 5)")
    with pytest.raises(ProofFailedError, match="2 of 3 changes"):
        bank.prove_history(opened, narrator)


@postgres
@pytest.mark.parametrize(
    "also", ["UPDATE account SET owner = 'Eve' WHERE id = 3", "DELETE FROM account WHERE id = 8"]
)
def test_more_than_the_tampered_column_is_noticed(
    opened: Database, narrator: Narrator, also: str
) -> None:
    change(opened, also)
    with pytest.raises(ProofFailedError, match="2 differences"):
        tampering.prove_detection(opened, narrator)


@pytest.mark.sampled(2)
@postgres
@pytest.mark.parametrize("point", ["half", "flushed", "drafted", "appended", None])
def test_a_killed_writer_leaves_whole_shipments(database: Database, point: str | None) -> None:
    death = interruption.kill_writer(database, name="victim", point=point, draw=random.Random(3))
    interruption.wait_until_gone(database, "victim")
    present = interruption.read_shipments(database)
    check_shipments(present, death=death, known=set(death.stored))
    assert len(death.stored) >= 2
    assert (death.open in present) == (point == "appended")


@postgres
def test_half_a_shipment_is_noticed(database: Database, narrator: Narrator) -> None:
    with database.sessions.begin() as session:
        session.add(Shipment(id=1, destination="door 1"))
        session.flush()
        session.add(Parcel(shipment_id=1, number=1, weight_grams=1))
    with pytest.raises(ProofFailedError, match="without all of their parcels"):
        interruption.prove_survival(database, narrator, deaths=0, seed=0)
    with pytest.raises(ProofFailedError, match="0 entries for 1 shipments"):
        interruption.prove_agreement(database, narrator)


@pytest.fixture
def archive(opened: Database, tmp_path: Path) -> Archive:
    """What was published of the opened bank."""
    archive = open_archive((tmp_path / "archive").as_uri())
    opened.log.sync(opened.engine, archive)
    return archive


@pytest.fixture
def restored(opened: Database) -> Iterator[Database]:
    name = f"{opened.engine.url.database}_restored"
    with disaster.open_empty(opened, name=name) as restored:
        yield restored
        disaster.destroy(restored)


@postgres
def test_a_bank_comes_back_and_goes_on(
    opened: Database, restored: Database, archive: Archive, narrator: Narrator
) -> None:
    disaster.prove_return(restored, narrator, archive=archive, remains=disaster.remember(opened))
    disaster.prove_continuation(restored, narrator, archive=archive)
    # The old database does not know of it, and has its say no more.
    with pytest.raises(ForeignServerError):
        opened.log.sync(opened.engine, archive)


@postgres
def test_a_write_that_does_not_come_back_is_noticed(
    opened: Database, restored: Database, archive: Archive, narrator: Narrator
) -> None:
    with opened.sessions.begin() as session:
        session.add(Shipment(id=1, destination="never published"))
    remains = disaster.remember(opened)
    with pytest.raises(ProofFailedError, match=r"shipment, oplog\.oplog_record, .* otherwise"):
        disaster.prove_return(restored, narrator, archive=archive, remains=remains)


@postgres
def test_another_past_is_noticed(database: Database, narrator: Narrator, tmp_path: Path) -> None:
    history = read_bundled("a test")
    commits.load_history(database, narrator, history=history)
    archive = open_archive((tmp_path / "archive").as_uri())
    database.log.sync(database.engine, archive)
    past = disaster.remember_past(database, history=history)
    disaster.prove_past(database, narrator, archive=archive, past=past, witness="the past")
    wrong = replace(past, files={**past.files, "README.md": ("100755", "")})
    with pytest.raises(ProofFailedError, match="are listed"):
        disaster.prove_past(database, narrator, archive=archive, past=wrong, witness="the past")


@unit
@pytest.mark.parametrize(
    ("present", "death", "known"),
    [
        ({1: PARCELS - 1}, Death(frozenset({1})), {1}),
        ({}, Death(frozenset({1})), {1}),
        ({1: PARCELS, 2: PARCELS}, Death(frozenset()), set()),
        ({1: PARCELS}, Death(frozenset(), 1, committed=False), set()),
        ({}, Death(frozenset(), 1, committed=True), set()),
    ],
    ids=["half", "lost", "two from nowhere", "uncommitted", "committed and lost"],
)
def test_half_lost_and_invented_shipments_are_noticed(
    present: dict[int, int], death: Death, known: set[int]
) -> None:
    with pytest.raises(ProofFailedError):
        check_shipments(present, death=death, known=known)


@unit
def test_a_false_statement_is_never_printed(narrator: Narrator) -> None:
    with pytest.raises(ProofFailedError, match="the reason"):
        narrator.prove("a falsehood", holds=False, otherwise="the reason")
    assert isinstance(narrator.out, io.StringIO)
    assert "falsehood" not in narrator.out.getvalue()
    assert narrator.proved == []


@unit
def test_errands_begin_at_the_till_and_repeat_with_their_seed() -> None:
    errands = [list(draw_errands(random.Random(5), accounts=8, count=30)) for _ in range(2)]
    assert errands[0] == errands[1]
    assert 1 in {errands[0][0].source, errands[0][0].target}
    assert all(e.source != e.target and e.amount > 0 for e in errands[0])
