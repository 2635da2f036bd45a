"""Inheritance in its three forms, and rows that refer to one another."""

from __future__ import annotations

from datetime import date

import sqlalchemy as sa
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class Animal(Base):
    """Single table: three classes share it."""

    __tablename__ = "animal"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class Dog(Animal):
    trick: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Cat(Animal):
    lives: Mapped[int | None] = mapped_column(default=9)
    __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012


class Person(Base):
    """Joined, three levels: three tables hold one object."""

    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class Employee(Person):
    __tablename__ = "employee"
    id: Mapped[int] = mapped_column(sa.ForeignKey("person.id"), primary_key=True)
    salary: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "employee"}  # noqa: RUF012


class Manager(Employee):
    __tablename__ = "manager"
    manager_id: Mapped[int] = mapped_column(sa.ForeignKey("employee.id"), primary_key=True)
    since: Mapped[date] = mapped_column(server_default=sa.func.current_date())
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class Shape(ConcreteBase, Base):
    """Concrete: each class has a whole table."""

    __tablename__ = "shape"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "shape", "concrete": True}  # noqa: RUF012


class Circle(Shape):
    __tablename__ = "circle"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    radius: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "circle", "concrete": True}  # noqa: RUF012


article_tag = sa.Table(
    "article_tag",
    Base.metadata,
    sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
)


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    tags: Mapped[list[Tag]] = relationship(secondary=article_tag, back_populates="articles")
    credits: Mapped[list[Credit]] = relationship(cascade="all, delete-orphan")


class Tag(Base):
    __tablename__ = "tag"
    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str]
    articles: Mapped[list[Article]] = relationship(secondary=article_tag, back_populates="tags")


class Credit(Base):
    """An association object: an association with columns of its own."""

    __tablename__ = "credit"
    article_id: Mapped[int] = mapped_column(sa.ForeignKey("article.id"), primary_key=True)
    person_id: Mapped[int] = mapped_column(sa.ForeignKey("person.id"), primary_key=True)
    role: Mapped[str | None]


class Node(Base):
    """A tree whose nodes also name a favourite, which makes cycles."""

    __tablename__ = "node"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("node.id"))
    favourite_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("node.id", name="node_favourite")
    )
    children: Mapped[list[Node]] = relationship(
        foreign_keys=parent_id, cascade="all, delete-orphan", remote_side=parent_id
    )
    favourite: Mapped[Node | None] = relationship(
        foreign_keys=favourite_id, remote_side="Node.id", post_update=True
    )
