"""The order in which a test run finds its server, and that it says why."""

from __future__ import annotations

import os

import pytest
import sqlalchemy as sa

from oplog.errors import ConfigurationError
from oplog.testing.resolve import ResolvedServer, probe_docker, resolve_server

pytestmark = pytest.mark.postgres

NO_ENGINE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}


def answer(server: ResolvedServer) -> object:
    engine = sa.create_engine(server.url)
    with engine.connect() as connection:
        result: object = connection.scalar(sa.text("select 1"))
    engine.dispose()
    return result


def test_given_url_wins() -> None:
    url = "postgresql+psycopg://somebody@somewhere/db"
    server = resolve_server({**NO_ENGINE, "OPLOG_TEST_DATABASE_URL": url})
    assert server.url == url
    assert "given by OPLOG_TEST_DATABASE_URL" in str(server)
    server.stop()


def test_without_an_engine_the_embedded_server_is_used_and_the_reason_said() -> None:
    server = resolve_server(NO_ENGINE)
    try:
        assert answer(server) == 1
        assert str(server).startswith("embedded server, up in ")
        assert "no Docker engine answers" in str(server)
    finally:
        server.stop()


def test_forced_docker_never_falls_back() -> None:
    with pytest.raises(ConfigurationError, match="no Docker engine answers") as caught:
        resolve_server({**NO_ENGINE, "OPLOG_TEST_PG": "docker"})
    assert "OPLOG_TEST_PG" in caught.value.hint


def test_forced_embedded_asks_no_engine() -> None:
    server = resolve_server({"OPLOG_TEST_PG": "embedded"})
    try:
        assert answer(server) == 1
        assert "OPLOG_TEST_PG=embedded" in str(server)
    finally:
        server.stop()


def test_unknown_choice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is not a kind of server"):
        resolve_server({"OPLOG_TEST_PG": "podman"})


def test_container_where_an_engine_answers() -> None:
    """Both branches are real: which one runs depends on the machine, and it says so."""
    environment = {**os.environ, "OPLOG_TEST_PG": "docker", "OPLOG_TEST_DATABASE_URL": ""}
    absence = probe_docker(environment)
    if absence:
        with pytest.raises(ConfigurationError) as caught:
            resolve_server(environment)
        assert absence in str(caught.value)
        return
    server = resolve_server(environment)
    try:
        assert answer(server) == 1
        assert "testcontainers" in str(server)
    finally:
        server.stop()
