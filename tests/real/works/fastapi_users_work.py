"""fastapi-users: its adapters on an async engine."""

from __future__ import annotations

import asyncio
import uuid

from fastapi_users_db_sqlalchemy import (
    SQLAlchemyBaseOAuthAccountTableUUID,
    SQLAlchemyBaseUserTableUUID,
    SQLAlchemyUserDatabase,
)
from fastapi_users_db_sqlalchemy.access_token import (
    SQLAlchemyAccessTokenDatabase,
    SQLAlchemyBaseAccessTokenTableUUID,
)
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, relationship


class Base(DeclarativeBase):
    """The models of an application."""


class OAuthAccount(SQLAlchemyBaseOAuthAccountTableUUID, Base):
    """As the manual has it."""


class User(SQLAlchemyBaseUserTableUUID, Base):
    """As the manual has it."""

    oauth_accounts: Mapped[list[OAuthAccount]] = relationship(
        lazy="joined", cascade="all, delete-orphan"
    )


class AccessToken(SQLAlchemyBaseAccessTokenTableUUID, Base):
    """As the manual has it."""


def prepare(url: str) -> None:
    """Make the tables."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()


def work(url: str) -> None:
    """Some users at once."""
    asyncio.run(_work(url))


async def _work(url: str) -> None:
    engine = create_async_engine(url)
    make = async_sessionmaker(engine, expire_on_commit=False)

    async def use(number: int) -> None:
        async with make() as session:
            users = SQLAlchemyUserDatabase(session, User, OAuthAccount)
            tokens = SQLAlchemyAccessTokenDatabase(session, AccessToken)
            user = await users.create(
                {"email": f"u{number}@example.org", "hashed_password": uuid.uuid4().hex}
            )
            for place in ("one", "two"):
                account = {"oauth_name": place, "access_token": "t", "account_id": str(number)}
                account["account_email"] = user.email
                user = await users.add_oauth_account(user, account)
            await users.update_oauth_account(
                user, user.oauth_accounts[0], {"access_token": "new", "expires_at": 1579000751}
            )
            user = await users.update(user, {"is_verified": True})
            token = await tokens.create({"token": uuid.uuid4().hex, "user_id": user.id})
            assert await tokens.get_by_token(token.token) is not None
            if number % 3 == 0:
                await tokens.delete(token)
                await users.delete(user)

    await asyncio.gather(*(use(number) for number in range(12)))
    await engine.dispose()
