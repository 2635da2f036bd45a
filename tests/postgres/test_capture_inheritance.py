"""Objects that are several rows, rows that are no object, rows that refer to one another."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import NotCapturableError
from tests.logged import LoggedDatabase, brief, open_logged
from tests.models.family import (
    Animal,
    Article,
    Base,
    Cat,
    Circle,
    Credit,
    Dog,
    Manager,
    Node,
    Person,
    Shape,
    Tag,
    article_tag,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, strict=True)


def test_single_table_inheritance(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Dog(id=1, name="Rex", trick="sit"), Cat(id=2, name="Tom")])
        session.add(Animal(id=3, name="It"))
    created = {e.operations[0].key["id"]: e.operations[0].fields for e in db.read()}
    assert created[1] == {"id": 1, "kind": "dog", "name": "Rex", "trick": "sit", "lives": 9}
    assert created[2] == {"id": 2, "kind": "cat", "name": "Tom", "trick": None, "lives": 9}
    with db.sessions.begin() as session:
        session.get_one(Dog, 1).trick = None
        session.get_one(Cat, 2).lives = 8
        session.delete(session.get_one(Animal, 3))
    db.assert_replays()


def test_joined_inheritance_writes_each_of_its_tables(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Manager(name=name, salary=1) for name in ("ada", "bob")])
        session.add(Person(name="cy"))
    with db.sessions.begin() as session:
        ada = session.scalars(sa.select(Manager).where(Manager.name == "ada")).one()
        ada.salary, ada.name = 2, "Ada"
    assert [brief(o) for e in db.read()[-2:] for o in e.operations] == [
        "UPDATE employee 1",
        "UPDATE person 1",
    ]
    with db.sessions.begin() as session:
        session.delete(session.scalars(sa.select(Manager).where(Manager.name == "bob")).one())
    assert sorted(brief(o) for e in db.read()[-3:] for o in e.operations) == [
        "DELETE employee 2",
        "DELETE manager 2",
        "DELETE person 2",
    ]
    db.assert_replays()


def test_joined_inheritance_in_one_aggregate(engine: Engine) -> None:
    db = open_logged(
        engine,
        Base,
        aggregates={"employee": "person/{id}", "manager": "person/{manager_id}"},
    )
    with db.sessions.begin() as session:
        session.add(Manager(id=5, name="ada", salary=1))
    (entry,) = db.read()
    assert (entry.aggregate, len(entry.operations)) == ("person/5", 3)
    db.assert_replays()


def test_concrete_inheritance(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Shape(id=1, name="blob"), Circle(id=1, name="o", radius=3)])
    with db.sessions.begin() as session:
        session.get_one(Circle, 1).radius = 4
        session.delete(session.scalars(sa.select(Shape).where(Shape.name == "blob")).one())
    assert sorted(db.tell()) == [
        "CREATE circle 1",
        "CREATE shape 1",
        "DELETE shape 1",
        "UPDATE circle 1",
    ]
    db.assert_replays()


def test_association_rows_come_and_go_with_the_collection(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        tags = [Tag(id=n, word=str(n)) for n in (1, 2, 3)]
        session.add(Article(id=1, title="a", tags=tags))
        session.add(Article(id=2, title="b", tags=tags[:1]))
    db.assert_replays()
    with db.sessions.begin() as session:
        article = session.get_one(Article, 1)
        article.tags.remove(session.get_one(Tag, 2))
        article.tags.append(Tag(id=4, word="new"))
    assert sorted(db.tell()[-3:]) == [
        "CREATE article_tag 1/4",
        "CREATE tag 4",
        "DELETE article_tag 1/2",
    ]
    with db.sessions.begin() as session:
        article = session.get_one(Article, 1)
        article.tags.clear()
    with db.sessions.begin() as session:
        session.delete(session.get_one(Article, 2))
    assert db.count("article_tag") == 0
    db.assert_replays()


def test_association_rows_written_by_core_statements(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Article(id=1, title="a"), Tag(id=1, word="x"), Tag(id=2, word="y")])
        session.flush()
        session.execute(article_tag.insert(), [{"article_id": 1, "tag_id": n} for n in (1, 2)])
    with db.sessions.begin() as session:
        session.execute(
            article_tag.delete().where(article_tag.c.tag_id == 2, article_tag.c.article_id == 1)
        )
    assert db.tell()[-1] == "DELETE article_tag 1/2"
    db.assert_replays()


def test_association_objects(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Person(id=1, name="ada"), Person(id=2, name="bob")])
        session.add(
            Article(id=1, title="a", credits=[Credit(person_id=n, role="author") for n in (1, 2)])
        )
    with db.sessions.begin() as session:
        session.get_one(Credit, (1, 1)).role = None
        session.delete(session.get_one(Credit, (1, 2)))
    with db.sessions.begin() as session:
        session.delete(session.get_one(Article, 1))
    assert db.tell()[-2:] == ["DELETE article 1", "DELETE credit 1/1"]
    db.assert_replays()


def test_a_tree_and_its_removal(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        leaves = [Node(id=n) for n in (3, 4)]
        session.add(Node(id=1, children=[Node(id=2, children=leaves)]))
    with db.sessions.begin() as session:
        session.get_one(Node, 4).parent_id = 1
    db.assert_replays()
    with db.sessions.begin() as session:
        session.delete(session.get_one(Node, 1))
    assert db.count("node") == 0
    db.assert_replays()


def test_cycles_closed_by_a_second_update(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        one, two = Node(), Node()
        one.favourite, two.favourite = two, one
        session.add_all([one, two])
    assert sorted(db.tell()) == ["CREATE node 1", "CREATE node 2"]
    fields = {e.aggregate: e.operations[0].fields["favourite_id"] for e in db.read()}
    assert fields == {"node/1": 2, "node/2": 1}
    with db.sessions.begin() as session:
        session.get_one(Node, 1).favourite = session.get_one(Node, 1)
    with db.sessions.begin() as session:
        session.delete(session.get_one(Node, 2))
    db.assert_replays()


def test_an_association_without_a_key_is_refused_at_attach() -> None:
    metadata = sa.MetaData()
    sa.Table("item", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table("item_link", metadata, sa.Column("a", sa.Integer), sa.Column("b", sa.Integer))
    sa.Table("note", metadata, sa.Column("text", sa.String))
    log = Oplog(TypeCatalog.from_models(metadata), keyring=Keyring.generate())
    with pytest.raises(NotCapturableError, match="no primary key: item_link, note") as caught:
        log.attach(sessionmaker())
    assert "untracked" in caught.value.hint
    told = TypeCatalog.from_models(metadata, untracked={"item_link": "derived", "note": "scratch"})
    Oplog(told, keyring=Keyring.generate()).attach(sessionmaker())
