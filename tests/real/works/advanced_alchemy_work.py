"""Advanced Alchemy: services and repositories, on blocking and async engines."""

from __future__ import annotations

import asyncio
import uuid

from advanced_alchemy.base import BigIntAuditBase, UUIDAuditBase
from advanced_alchemy.filters import LimitOffset
from advanced_alchemy.repository import SQLAlchemyAsyncRepository, SQLAlchemySyncRepository
from advanced_alchemy.service import (
    SQLAlchemyAsyncRepositoryService,
    SQLAlchemySyncRepositoryService,
)
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Mapped, Session, mapped_column


class Author(UUIDAuditBase):
    """Its key is drawn by the application."""

    name: Mapped[str] = mapped_column(unique=True)
    about: Mapped[dict | None]  # type: ignore[type-arg]


class Sale(BigIntAuditBase):
    """Its key is drawn by a sequence."""

    name: Mapped[str]
    amount: Mapped[int]


class AuthorService(SQLAlchemySyncRepositoryService[Author]):
    """As the manual has it."""

    class Repository(SQLAlchemySyncRepository[Author]):
        """As the manual has it."""

        model_type = Author

    repository_type = Repository


class SaleService(SQLAlchemyAsyncRepositoryService[Sale]):
    """As the manual has it."""

    class Repository(SQLAlchemyAsyncRepository[Sale]):
        """As the manual has it."""

        model_type = Sale

    repository_type = Repository


def prepare(url: str) -> None:
    """Make the tables."""
    engine = create_engine(url)
    Author.metadata.create_all(engine)
    engine.dispose()


def work(url: str) -> None:
    """First blocking, then async."""
    engine = create_engine(url)
    with Session(engine, expire_on_commit=False) as session:
        service = AuthorService(session=session, auto_commit=True)
        authors = service.create_many([{"name": f"a{number}"} for number in range(30)])
        service.update({"name": "changed", "about": {"a": 1}}, item_id=authors[0].id)
        service.upsert({"id": uuid.uuid4(), "name": "upserted"})
        service.upsert_many(
            [{"name": "a3", "about": {"b": 2}}, {"name": "new"}], match_fields=["name"]
        )
        service.update_many([{"id": one.id, "about": {"c": 3}} for one in authors[4:20]])
        service.get_or_upsert(match_fields=["name"], name="a5", about={"d": 4})
        service.delete(authors[1].id)
        service.delete_many([one.id for one in authors[20:]])
        service.delete_where(name="new")
        assert service.list_and_count(LimitOffset(5, 0))[1] == 20
    engine.dispose()
    asyncio.run(_work(url))


async def _work(url: str) -> None:
    engine = create_async_engine(url)
    make = async_sessionmaker(engine, expire_on_commit=False)

    async def sell(number: int) -> None:
        async with make() as session:
            service = SaleService(session=session, auto_commit=True)
            sales = await service.create_many(
                [{"name": f"s{number}", "amount": amount} for amount in range(20)]
            )
            await service.update_many([{"id": one.id, "amount": 100} for one in sales[:5]])
            await service.upsert_many([{"id": sales[6].id, "name": "u", "amount": 7}])
            await service.delete_many([one.id for one in sales[10:]])

    await asyncio.gather(*(sell(number) for number in range(5)))
    await engine.dispose()
