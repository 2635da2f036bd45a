"""Which database errors pass, and after which the same transaction may be run again."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError

from oplog.postgres.sqlstate import (
    LOCK_NOT_AVAILABLE,
    RUN_AGAIN,
    SERIALIZATION_FAILURE,
    is_away,
    is_passing,
    may_run_again,
    read_sqlstate,
)

pytestmark = pytest.mark.unit


class DriverError(Exception):
    """An error as the driver raises it: with a state if the server sent one."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("refused")
        self.sqlstate = sqlstate


def failed(
    sqlstate: str | None, kind: type[DBAPIError] = OperationalError, *, invalidated: bool = False
) -> DBAPIError:
    return kind("SELECT", None, DriverError(sqlstate), connection_invalidated=invalidated)


def test_the_state_behind_an_error() -> None:
    assert read_sqlstate(failed("55P03")) == LOCK_NOT_AVAILABLE
    assert read_sqlstate(DriverError("40001")) == SERIALIZATION_FAILURE
    assert read_sqlstate(failed(None)) is None
    assert read_sqlstate(ValueError()) is None
    assert read_sqlstate(OperationalError("SELECT", None, Exception())) is None


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"])
def test_states_after_which_a_transaction_is_run_again(sqlstate: str) -> None:
    assert sqlstate in RUN_AGAIN
    assert may_run_again(failed(sqlstate))


@pytest.mark.parametrize("sqlstate", ["23505", "40002", "40003", "57014", "57P01", "08006", None])
def test_states_after_which_it_is_not(sqlstate: str | None) -> None:
    assert not may_run_again(failed(sqlstate))


def test_only_errors_of_sqlalchemy_are_run_again() -> None:
    assert not may_run_again(DriverError("40001"))


@pytest.mark.parametrize(
    "sqlstate", ["08000", "08006", "53100", "53300", "40001", "40P01", "57P01", "57P03", "55P03"]
)
def test_states_that_pass(sqlstate: str) -> None:
    assert is_passing(failed(sqlstate))
    assert is_passing(failed(sqlstate, ProgrammingError))


@pytest.mark.parametrize(
    "sqlstate", ["23505", "42501", "42P01", "57014", "55006", "0A000", "XX000"]
)
def test_states_that_do_not(sqlstate: str) -> None:
    assert not is_passing(failed(sqlstate))


def test_without_a_state_the_kind_of_error_decides() -> None:
    assert is_passing(failed(None))
    assert is_passing(failed(None, InterfaceError))
    assert not is_passing(failed(None, ProgrammingError))


@pytest.mark.parametrize("sqlstate", ["08001", "57P01", "57P03", None])
def test_a_server_that_is_away(sqlstate: str | None) -> None:
    assert is_away(failed(sqlstate))


@pytest.mark.parametrize("sqlstate", ["57014", "53300", "40001", "3D000", "28P01"])
def test_a_server_that_answers(sqlstate: str) -> None:
    assert not is_away(failed(sqlstate))
    assert is_away(failed(sqlstate, invalidated=True))
