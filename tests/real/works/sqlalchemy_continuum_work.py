"""SQLAlchemy-Continuum: it writes version tables of its own in each flush, as triggers would."""

from __future__ import annotations

from typing import Any, ClassVar

import sqlalchemy as sa
import sqlalchemy_continuum
from sqlalchemy.orm import Session, configure_mappers, declarative_base, relationship

sqlalchemy_continuum.make_versioned(user_cls=None)
Base: Any = declarative_base()
ARTICLE_TAG = sa.Table(
    "article_tag",
    Base.metadata,
    sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
)


class Article(Base):
    """Versioned."""

    __versioned__: ClassVar[dict[str, Any]] = {}
    __tablename__ = "article"
    id = sa.Column(sa.Integer, primary_key=True)
    name = sa.Column(sa.Unicode(255))
    content = sa.Column(sa.UnicodeText)
    tags = relationship("Tag", secondary=ARTICLE_TAG, backref="articles")


class Tag(Base):
    """Versioned."""

    __versioned__: ClassVar[dict[str, Any]] = {}
    __tablename__ = "tag"
    id = sa.Column(sa.Integer, primary_key=True)
    name = sa.Column(sa.Unicode(255))


configure_mappers()


def prepare(url: str) -> None:
    """Make the tables."""
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()


def work(url: str) -> None:
    """Write articles, change and delete some, and go back to earlier versions."""
    engine = sa.create_engine(url)
    with Session(engine) as session:
        tags = [Tag(name=f"t{number}") for number in range(5)]
        articles = [
            Article(name=f"a{number}", content="first", tags=tags[: number % 5])
            for number in range(20)
        ]
        session.add_all(articles)
        session.commit()
        for number, article in enumerate(articles):
            article.content = f"second {number}"  # type: ignore[assignment]
            article.tags = tags[number % 3 :]
        session.commit()
        with session.begin_nested():
            session.delete(articles[0])
        session.commit()
        point = session.begin_nested()
        session.delete(articles[1])
        session.flush()
        point.rollback()
        session.commit()
        articles[2].versions[0].revert(relations=["tags"])
        session.commit()
        assert articles[2].content == "first"
        session.execute(sa.update(Tag).where(Tag.name == "t4").values(name="t5"))
        session.commit()
    engine.dispose()
