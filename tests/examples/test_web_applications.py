"""The web applications of `examples/applications`, each as a client finds it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from oplog.errors import MissingMetadataError
from tests.examples.kept_notes import Shelf

pytestmark = pytest.mark.postgres

MISSING = "packages of the extra `examples` are not installed"
httpx2 = pytest.importorskip("httpx2", reason=MISSING)
testclient = pytest.importorskip("starlette.testclient", reason=MISSING)

ROUTES = {
    "fastapi": "POST /notes/{key}",
    "starlette": "POST /api/notes/{key:int}",
    "litestar": "POST /notes/{key}",
}
ADA = {"Authorization": "ada", "X-Request-ID": "r-1"}


def make_application(name: str, shelf: Shelf) -> Any:
    module = pytest.importorskip(f"examples.applications.{name}_notes", reason=MISSING)
    return module.make_application(shelf.url)


@contextmanager
def open_client(name: str, shelf: Shelf) -> Iterator[Any]:
    """A client that raises what the application raises, in a thread beside it."""
    with testclient.TestClient(make_application(name, shelf)) as client:
        yield client


def path(name: str, key: int) -> str:
    return f"/api/notes/{key}" if name == "starlette" else f"/notes/{key}"


@pytest.mark.parametrize("name", ROUTES)
def test_every_record_of_a_request_says_who_which_and_where(shelf: Shelf, name: str) -> None:
    with open_client(name, shelf) as client:
        assert client.post(path(name, 1), headers=ADA).is_success
        assert client.post(path(name, 2), headers={"Authorization": "bob"}).is_success
    told = shelf.tell()
    said = {"actor": ["ada"], "request": ["r-1"], "route": [ROUTES[name]]}
    # A second commit of FastAPI's, and in the end the background task's.
    commits = 3 if name == "fastapi" else 2
    first = ["CREATE note/1", *["UPDATE note/1"] * (commits - 1)]
    assert told[:commits] == [(done, said) for done in first]
    assert {done for done, _ in told[commits:]} == {"CREATE note/2", "UPDATE note/2"}
    drawn = {one["request"][0] for _, one in told[commits:]}
    assert len(drawn) == 1
    assert drawn != {"r-1"}
    assert all(one["actor"] == ["bob"] for _, one in told[commits:])


@pytest.mark.parametrize("name", ROUTES)
def test_a_request_of_nobody_fails_and_writes_nothing(shelf: Shelf, name: str) -> None:
    with open_client(name, shelf) as client:
        if name == "litestar":
            # It answers for its handlers' errors itself.
            assert client.post(path(name, 1)).status_code == 500
        else:
            with pytest.raises(MissingMetadataError, match="says nothing of actor"):
                client.post(path(name, 1))
    assert shelf.count() == 0
    assert shelf.tell() == []


def test_a_streamed_answer_writes_as_its_request(shelf: Shelf) -> None:
    with open_client("fastapi", shelf) as client:
        assert client.post("/imports", headers=ADA).text == "11\n12\n"
    said = {"actor": ["ada"], "request": ["r-1"], "route": ["POST /imports"]}
    assert shelf.tell() == [("CREATE note/11", said), ("CREATE note/12", said)]


async def test_requests_at_once_do_not_mix(shelf: Shelf) -> None:
    application = make_application("fastapi", shelf)
    transport = httpx2.ASGITransport(application)
    async with (
        application.router.lifespan_context(application),
        httpx2.AsyncClient(transport=transport, base_url="http://notes") as client,
    ):
        keys = range(1, 13)
        answers = await asyncio.gather(
            *(
                client.post(
                    f"/notes/{key}",
                    headers={"Authorization": f"user-{key}", "X-Request-ID": f"r-{key}"},
                )
                for key in keys
            )
        )
    assert all(answer.is_success for answer in answers)
    told = shelf.tell()
    assert len(told) == 3 * len(keys)
    for done, said in told:
        key = done.rpartition("/")[2]
        assert said["actor"] == [f"user-{key}"]
        assert said["request"] == [f"r-{key}"]


def test_requests_in_threads_of_a_wsgi_server_do_not_mix(shelf: Shelf) -> None:
    flask_notes = pytest.importorskip("examples.applications.flask_notes", reason=MISSING)
    log = flask_notes.make_log()
    log.attach(flask_notes.database.session)
    application = flask_notes.make_application(shelf.url)

    def post(key: int) -> str:
        named = {"Authorization": f"user-{key}", "X-Request-ID": f"r-{key}"}
        return str(application.test_client().post(f"/notes/{key}", headers=named).text)

    try:
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(post, range(1, 13))) == {"added"}
    finally:
        with application.app_context():
            flask_notes.database.engine.dispose()
        log.detach(flask_notes.database.session)
    told = shelf.tell()
    assert len(told) == 2 * 12
    for done, said in told:
        key = done.rpartition("/")[2]
        assert (said["actor"], said["request"]) == ([f"user-{key}"], [f"r-{key}"])


def test_flask(shelf: Shelf) -> None:
    flask_notes = pytest.importorskip("examples.applications.flask_notes", reason=MISSING)
    log = flask_notes.make_log()
    log.attach(flask_notes.database.session)
    try:
        application = flask_notes.make_application(shelf.url)
        client = application.test_client()
        assert client.post("/notes/1", headers=ADA).text == "added"
        assert client.post("/notes/1/index", headers=ADA).text == "counted"
        assert client.post("/imports", headers=ADA).text == "11\n12\n"
        application.config["PROPAGATE_EXCEPTIONS"] = True
        with pytest.raises(MissingMetadataError):
            client.post("/notes/2")
        with application.app_context():
            flask_notes.database.engine.dispose()
    finally:
        log.detach(flask_notes.database.session)
    said = {"actor": ["ada"], "request": ["r-1"]}
    routes = ["/notes/<int:key>", "/notes/<int:key>", "/notes/<int:key>/index"]
    routes += ["/imports", "/imports"]
    done = ["CREATE note/1", "UPDATE note/1", "UPDATE note/1", "CREATE note/11", "CREATE note/12"]
    assert shelf.tell() == [
        (one, {**said, "route": [f"POST {route}"]}) for one, route in zip(done, routes, strict=True)
    ]
