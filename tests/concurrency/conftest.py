"""A log attached to the workload's tables."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog
from tests.concurrency.workload import Base, make_copies, make_log
from tests.databases import fill_database
from tests.logged import write_first


@pytest.fixture
def log(engine: Engine) -> Oplog:
    def fill(engine: Engine) -> Keyring | None:
        with engine.begin() as connection:
            Base.metadata.create_all(connection)
            make_copies(connection)
        log = make_log()
        # The first transaction of all stores types and key, and makes others wait meanwhile.
        write_first(log, engine)
        return log.keyring

    return make_log(keyring=fill_database(engine, make_copies, fill))


@pytest.fixture
def sessions(engine: Engine, log: Oplog) -> sessionmaker[Session]:
    factory = sessionmaker(engine)
    log.attach(factory)
    return factory


@pytest.fixture
def prepared_sessions(engine: Engine, log: Oplog) -> sessionmaker[Session]:
    """Sessions that can stop between PREPARE TRANSACTION and COMMIT PREPARED."""
    with engine.connect() as connection:
        setting = connection.exec_driver_sql("SHOW max_prepared_transactions").scalar_one()
    if setting == "0":
        pytest.skip("the server allows no prepared transactions (max_prepared_transactions = 0)")
    factory = sessionmaker(engine, twophase=True)
    log.attach(factory)
    return factory
