"""Flask-SQLAlchemy: requests of a small application."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy


def make_application(url: str) -> tuple[Flask, SQLAlchemy]:
    """A shop, whose models know the extension."""
    application = Flask("shop")
    application.config["SQLALCHEMY_DATABASE_URI"] = url
    application.config["SQLALCHEMY_RECORD_QUERIES"] = True
    application.config["SQLALCHEMY_TRACK_MODIFICATIONS"] = True
    database = SQLAlchemy(application)
    sold = database.Table(
        "sold",
        sa.Column("customer_id", sa.ForeignKey("customer.id"), primary_key=True),
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
    )

    class Customer(database.Model):  # type: ignore[name-defined,misc]
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String, unique=True)
        articles = database.relationship("Article", secondary=sold, backref="buyers")

    class Article(database.Model):  # type: ignore[name-defined,misc]
        id = sa.Column(sa.Integer, primary_key=True)
        price = sa.Column(sa.Numeric(10, 2), server_default="1.5")
        tags = sa.Column(sa.JSON, default=list)

    _add_views(application, database, Customer, Article)
    return application, database


def _add_views(application: Flask, database: SQLAlchemy, customer: type, article: type) -> None:
    session = database.session

    def add(name: str) -> str:
        # A name that is there already is refused by the database, and rolled back.
        try:
            session.add(customer(name=name, articles=[article(tags=[name, {"a": 1}])]))
            session.commit()
        except sa.exc.IntegrityError:
            session.rollback()
            return "taken"
        return "added"

    def raise_prices() -> str:
        session.execute(sa.update(article).values(price=article.price * 2))  # type: ignore[attr-defined]
        session.commit()
        return str(len(database.paginate(sa.select(article), per_page=5).items))

    def remove(name: str) -> str:
        session.delete(database.first_or_404(sa.select(customer).filter_by(name=name)))
        session.commit()
        return "removed"

    def forget() -> str:
        session.add(customer(name="not committed"))
        session.flush()
        return "forgotten"

    views: dict[str, Callable[..., str]] = {
        "/add/<name>": add,
        "/raise": raise_prices,
        "/remove/<name>": remove,
        "/forget": forget,
    }
    for place, view in views.items():
        application.add_url_rule(place, view.__name__, view)


def prepare(url: str) -> None:
    """Make the tables."""
    application, database = make_application(url)
    with application.app_context():
        database.create_all()


def work(url: str) -> None:
    """Send requests, and read what they answer."""
    client = make_application(url)[0].test_client()
    for number in range(20):
        assert client.get(f"/add/c{number}").text == "added"
    assert client.get("/add/c3").text == "taken"
    assert client.get("/raise").text == "5"
    assert client.get("/forget").text == "forgotten"
    for number in range(0, 20, 2):
        assert client.get(f"/remove/c{number}").text == "removed"
    assert client.get("/remove/c0").status_code == 404
