"""The tests of a FastAPI application: a client, threads of the framework, all rolled back."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from tests.postgres.plugin_suite import run_suite

pytestmark = pytest.mark.postgres
pytest.importorskip("fastapi", reason="packages of the extra `examples` are not installed")

WEB = """
from typing import Annotated
from fastapi import BackgroundTasks, Depends, FastAPI
from bank import AsyncSessions, Sessions, log, open_account, rename, Account
from oplog.asgi import ContextMiddleware

app = FastAPI()
app.add_middleware(ContextMiddleware, describe=lambda scope: {"actor": "ann"})
log.attach(AsyncSessions)

def open_session():
    with Sessions() as session:
        yield session

@app.post("/accounts/{key}")
def add(key: int, background: BackgroundTasks, session=Depends(open_session)):
    session.add(Account(id=key, owner="Ada"))
    session.commit()
    background.add_task(rename, key, "Bo")

@app.post("/async/{key}")
async def add_async(key: int):
    async with AsyncSessions.begin() as session:
        session.add(Account(id=key, owner="Ada"))
"""
TESTS = """
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from bank import Account, AsyncSessions, Base, Sessions, log
from oplog.testing import assert_logged
from web import app

@pytest.fixture
def connection(open_oplog):
    opened = open_oplog(Base, log=log, sessions=Sessions, shared=True)
    with opened.rolled_back() as connection:
        yield connection

@pytest.mark.parametrize("again", range(3))
def test_a_request_with_a_background_task(connection, again):
    with TestClient(app) as client:
        assert client.post("/accounts/1").status_code == 200
        with pytest.raises(sa.exc.IntegrityError):
            client.post("/accounts/1")
        assert client.post("/accounts/2").status_code == 200
    kinds = [change.kind.name for change in log.history(connection, Account, 1)]
    assert kinds == ["CREATE", "UPDATE"]
    assert_logged(
        log, connection, Account, key=2, metadata={"actor": "ann", "route": "POST /accounts/{key}"}
    )

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_asynchronous_request(open_oplog):
    opened = open_oplog(Base, log=log, sessions=AsyncSessions, shared=True)
    async with opened.rolled_back_async() as connection:
        import httpx2
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://bank") as client:
            assert (await client.post("/async/1")).status_code == 200
        await connection.run_sync(lambda inside: assert_logged(log, inside, Account, key=1))
"""


def test_its_suite_passes(tmp_path: Path, server_url: URL) -> None:
    ended = run_suite(
        tmp_path,
        server_url.render_as_string(hide_password=False),
        *("-p", "oplog.testing.plugin", "-p", "no:asyncio"),
        web=WEB,
        test_web=TESTS,
    )
    assert ended.code == 0, ended.output
