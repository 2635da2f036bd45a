"""Chooses the PostgreSQL server of a test run: a given one, a container, or an embedded one.

The caller passes the environment in. There is no silent fallback: a server that was asked for is
used or the run fails, and one that was passed over is named with the reason.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from oplog.errors import ConfigurationError
from oplog.testing.server import EmbeddedServer

DATABASE_URL = "OPLOG_TEST_DATABASE_URL"
CHOICE = "OPLOG_TEST_PG"
IMAGE = "OPLOG_TEST_IMAGE"
DEFAULT_IMAGE = "postgres:17"
DEFAULT_ENGINE = "unix:///var/run/docker.sock"
PING_SECONDS = 3


@dataclass(frozen=True, slots=True)
class ResolvedServer:
    """A server that answers.

    `url`: SQLAlchemy URL of a database on it, as an account that may create databases.
    `name`: what it is. `reason`: why nothing else was used, "" when nothing else was tried.
    `seconds`: how long it took to start. `stop`: ends it, when it was started here.
    """

    url: str
    name: str
    reason: str
    seconds: float
    stop: Callable[[], None]

    def __str__(self) -> str:
        why = f"; {self.reason}" if self.reason else ""
        return f"{self.name}, up in {self.seconds:.2f} s{why}"


def resolve_server(environment: Mapping[str, str]) -> ResolvedServer:
    """Return a running server, started if need be.

    `OPLOG_TEST_DATABASE_URL` in `environment` names one; else `OPLOG_TEST_PG` forces `docker`
    or `embedded`; else a Docker engine that answers is used, with the image named by
    `OPLOG_TEST_IMAGE`; else an embedded server is started. Raises `ConfigurationError` when
    the one that was forced, or the last one left, cannot be had. A Docker engine that answers
    but cannot start the container is an error too.
    """
    began = time.monotonic()
    server = _choose(environment)
    return replace(server, seconds=time.monotonic() - began)


def _choose(environment: Mapping[str, str]) -> ResolvedServer:
    choice = environment.get(CHOICE, "auto")
    if choice not in {"auto", "docker", "embedded"}:
        raise ConfigurationError(
            f"{CHOICE}={choice!r} names no kind of server",
            hint=f"it is docker, embedded or auto; a server's URL goes into {DATABASE_URL}",
        )
    if url := environment.get(DATABASE_URL):
        return ResolvedServer(url, f"given by {DATABASE_URL}", "", 0.0, _leave_running)
    if choice == "embedded":
        return _start_embedded(f"{CHOICE}=embedded")
    absence = probe_docker(environment)
    if not absence:
        return _start_container(environment.get(IMAGE, DEFAULT_IMAGE))
    if choice == "docker":
        raise ConfigurationError(
            f"{CHOICE}=docker, but {absence}",
            hint=f"start a Docker engine, or unset {CHOICE} to use what there is",
        )
    return _start_embedded(absence)


def probe_docker(environment: Mapping[str, str]) -> str:
    """Return "" when a Docker engine answers a ping, else the reason why none can be used."""
    try:
        import docker  # noqa: PLC0415 - part of an extra
        import docker.errors  # noqa: PLC0415 - as above
        import testcontainers  # noqa: F401, PLC0415 - as above
    except ImportError as error:
        return f"no container: {error.name} is not installed (pip install 'oplog[docker]')"
    try:
        # docker-py forgets to close a socket that it could not connect, so that is tried first.
        _reach(environment.get("DOCKER_HOST") or DEFAULT_ENGINE)
        client = docker.from_env(timeout=PING_SECONDS, environment=dict(environment))
        with contextlib.closing(client):
            client.ping()
    except (docker.errors.DockerException, OSError) as error:
        return f"no container: no Docker engine answers ({_first_line(error)})"
    return ""


def _reach(engine: str) -> None:
    """Raise `OSError` when the engine has a Unix socket and nobody listens on it."""
    scheme, _, path = engine.partition("://")
    if scheme == "unix" and os.name == "posix":
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PING_SECONDS)
            probe.connect(path)


def _start_container(image: str) -> ResolvedServer:
    from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415 - an extra

    container = PostgresContainer(image, driver="psycopg").with_command(
        "postgres -c fsync=off -c max_connections=200 -c max_prepared_transactions=20 "
        "-c timezone=UTC"
    )
    try:
        container.start()
    except Exception as error:  # whatever the engine, the registry or the wait may raise
        raise ConfigurationError(
            f"a Docker engine answers, but {image} did not start: {error}",
            hint=f"name another image with {IMAGE}, or set {CHOICE}=embedded",
        ) from error
    url = container.get_connection_url()
    return ResolvedServer(url, f"testcontainers {image}", "", 0.0, container.stop)


def _start_embedded(reason: str) -> ResolvedServer:
    server = EmbeddedServer().start()
    return ResolvedServer(server.url, "embedded server", reason, 0.0, server.stop)


def _leave_running() -> None:
    """End nothing: the server was given."""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]
