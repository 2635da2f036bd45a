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
    """A running server.

    `url`: SQLAlchemy URL of a database on it, with an account that may create databases.
    `name`: its kind. `reason`: why no other server was used, "" if no other was tried.
    `seconds`: how long it took to start. `stop`: ends it if it was started here.
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
    """Return a running server; start one if necessary.

    `OPLOG_TEST_DATABASE_URL` in `environment` names one; else `OPLOG_TEST_PG` forces `docker`
    or `embedded`; else a Docker engine that answers is used, with the image named by
    `OPLOG_TEST_IMAGE`; else an embedded server is started. Raises `ConfigurationError` when
    the forced server, or the last possible one, cannot be used, and when a Docker engine
    answers but cannot start the container.
    """
    began = time.monotonic()
    server = _choose(environment)
    return replace(server, seconds=time.monotonic() - began)


def _choose(environment: Mapping[str, str]) -> ResolvedServer:
    choice = environment.get(CHOICE, "auto")
    if choice not in {"auto", "docker", "embedded"}:
        raise ConfigurationError(
            f"{CHOICE}={choice!r} is not a kind of server",
            hint=f"use docker, embedded or auto; the URL of a server goes into {DATABASE_URL}",
        )
    if url := environment.get(DATABASE_URL):
        return _describe(url, name=f"given by {DATABASE_URL}", stop=_leave_running)
    if choice == "embedded":
        return _start_embedded(f"{CHOICE}=embedded")
    absence = probe_docker(environment)
    if not absence:
        return _start_container(environment.get(IMAGE, DEFAULT_IMAGE))
    if choice == "docker":
        raise ConfigurationError(
            f"{CHOICE}=docker, but {absence}",
            hint=f"start a Docker engine, or unset {CHOICE} to use an embedded server",
        )
    return _start_embedded(absence)


def probe_docker(environment: Mapping[str, str]) -> str:
    """Return "" when a Docker engine answers a ping, else the reason why it cannot be used."""
    try:
        import docker  # noqa: PLC0415 - part of an extra
        import docker.errors  # noqa: PLC0415 - as above
        import testcontainers  # noqa: F401, PLC0415 - as above
    except ImportError as error:
        return f"no container: {error.name} is not installed (pip install 'oplog[docker]')"
    try:
        # docker-py does not close a socket that it failed to connect; connecting is tried
        # here first, so that no unclosed socket is left.
        _reach(environment.get("DOCKER_HOST") or DEFAULT_ENGINE)
        client = docker.from_env(timeout=PING_SECONDS, environment=dict(environment))
        with contextlib.closing(client):
            client.ping()
    except (docker.errors.DockerException, OSError) as error:
        return f"no container: no Docker engine answers ({_first_line(error)})"
    return ""


def _reach(engine: str) -> None:
    """Raise `OSError` when the engine has a Unix socket and no process listens on it."""
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
    except Exception as error:  # the engine, the registry and the wait raise many kinds
        raise ConfigurationError(
            f"a Docker engine answers, but {image} did not start: {error}",
            hint=f"name another image with {IMAGE}, or set {CHOICE}=embedded",
        ) from error
    url = container.get_connection_url()
    return _describe(url, name=f"testcontainers {image}", stop=container.stop)


def _start_embedded(reason: str) -> ResolvedServer:
    server = EmbeddedServer().start()
    return _describe(server.url, name="embedded server", reason=reason, stop=server.stop)


def _describe(url: str, *, name: str, reason: str = "", stop: Callable[[], None]) -> ResolvedServer:
    return ResolvedServer(url=url, name=name, reason=reason, seconds=0.0, stop=stop)


def _leave_running() -> None:
    """Do nothing: the server was not started here."""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]
