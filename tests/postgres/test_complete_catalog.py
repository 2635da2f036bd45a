"""A catalog that lacks tables of the models: refused, warned of, reported, and seen by verify."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Oplog, TypeCatalog
from oplog.errors import CatalogWarning, ConfigurationError, UnloggedWriteError
from tests.logged import run, track

pytestmark = pytest.mark.postgres


def make_base() -> Any:
    class Base(DeclarativeBase):
        pass

    class Early(Base):
        __tablename__ = "early"
        id: Mapped[int] = mapped_column(primary_key=True)

    return Base


def map_late(base: Any) -> Any:
    return type(
        "Late",
        (base,),
        {"__tablename__": "late", "id": mapped_column(sa.Integer, primary_key=True)},
    )


def make_log(catalog: TypeCatalog, **more: Any) -> Oplog:
    return Oplog(catalog, plaintext=True, **more)


def diagnose(log: Oplog, engine: Engine) -> list[tuple[str, str, str]]:
    with engine.connect() as connection:
        found = log.diagnose(connection)
    return [(f.severity, f.what, f.where) for f in found if f.what.startswith(("cat", "guard"))]


def test_a_model_that_was_imported_late_is_refused_where_it_is_expected(engine: Engine) -> None:
    base = make_base()
    log = make_log(TypeCatalog.from_models(base), expect=base)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    map_late(base)
    with pytest.raises(ConfigurationError, match="not in the catalog: late") as caught:
        log.attach(engine)
    assert "untracked" in caught.value.hint
    with pytest.raises(ConfigurationError, match="late"):
        make_log(TypeCatalog.from_models(make_base()), expect=[base.registry]).attach(engine)


def test_what_is_left_out_with_a_reason_is_not_expected(engine: Engine) -> None:
    base = make_base()
    map_late(base)
    other = sa.MetaData()
    sa.Table("elsewhere", other, sa.Column("id", sa.Integer, primary_key=True))
    catalog = TypeCatalog.from_models(base, untracked={"late": "tried out"})
    for expect in (base, base.registry, base.metadata, [base, base.metadata]):
        make_log(catalog, expect=expect).attach(sessionmaker(engine))
    with pytest.raises(ConfigurationError, match="elsewhere"):
        make_log(catalog, expect=(base, other)).attach(engine)
    both = TypeCatalog.from_models([base, other], untracked={"late": "tried out"})
    make_log(both, expect=(base, other)).attach(engine)
    assert sorted(both.types) == ["early", "elsewhere"]


@pytest.mark.parametrize("expect", ["early", 7, [7], object()])
def test_what_is_no_models_is_refused_at_once(expect: Any) -> None:
    with pytest.raises(ConfigurationError, match="neither a declarative base nor a MetaData"):
        make_log(TypeCatalog(), expect=expect)


def test_a_late_model_is_told_without_being_expected(engine: Engine) -> None:
    base = make_base()
    log = make_log(TypeCatalog.from_models(base))
    map_late(base)
    with pytest.warns(CatalogWarning, match="not in the catalog: late; it was made before") as told:
        log.attach(engine)
    assert [one.filename for one in told] == [__file__]
    with pytest.warns(CatalogWarning, match="no tables, so nothing is logged"):
        make_log(TypeCatalog()).attach(engine)


def test_a_model_that_comes_after_attach_is_told_when_it_is_written(engine: Engine) -> None:
    base = make_base()
    log = make_log(TypeCatalog.from_models(base))
    sessions = sessionmaker(engine)
    log.attach(sessions)
    late = map_late(base)
    base.metadata.create_all(engine)
    with (
        pytest.warns(CatalogWarning, match="late is written and not logged"),
        sessions.begin() as session,
    ):
        session.add(late(id=1))
    track(engine, late.__table__)
    with pytest.raises(UnloggedWriteError, match="late"), sessions.begin() as session:
        session.add(late(id=2))


def test_automap_after_the_catalog(engine: Engine) -> None:
    run(engine, "CREATE TABLE thing (id int PRIMARY KEY)")
    base = automap_base()
    early = make_log(TypeCatalog.from_models(base), expect=base)
    base.prepare(autoload_with=engine)
    with pytest.raises(ConfigurationError, match="thing"):
        early.attach(engine)
    make_log(TypeCatalog.from_models(base), expect=base).attach(engine)


def test_doctor_and_verify_see_what_the_catalog_lacks(engine: Engine) -> None:
    base = make_base()
    log = make_log(TypeCatalog.from_models(base))
    late = map_late(base)
    base.metadata.create_all(engine)
    track(engine, late.__table__)
    assert diagnose(log, engine) == [
        ("problem", "catalog-incomplete", "late"),
        ("problem", "guard-missing", "public.early"),
        ("notice", "guard-undeclared", "public.late"),
    ]
    with Session(engine) as session, session.begin():
        session.execute(sa.text("SET LOCAL oplog.bypass = 'an import'"))
        session.add(late(id=1))
    with engine.connect() as connection:
        report = log.verify(connection)
        assert [(d.table, d.kind) for d in report.differences] == [("public.late", "extra")]
        left_out = TypeCatalog.from_models(base, untracked={"late": "tried out"})
        assert make_log(left_out).verify(connection).ok


def test_an_empty_catalog_is_told_aloud(engine: Engine) -> None:
    log = make_log(TypeCatalog())
    assert [(s, w) for s, w, _ in diagnose(log, engine)] == [("notice", "catalog-empty")]
    base = make_base()
    base.metadata.create_all(engine)
    track(engine, *base.metadata.sorted_tables)
    found = diagnose(log, engine)
    assert [(s, w) for s, w, _ in found] == [
        ("problem", "catalog-empty"),
        ("notice", "guard-undeclared"),
    ]
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL oplog.bypass = 'an import'")
        connection.exec_driver_sql("INSERT INTO early VALUES (1)")
    with engine.connect() as connection:
        assert [d.kind for d in log.verify(connection).differences] == ["extra"]


def test_the_refusal_names_the_program(engine: Engine, database_url: URL) -> None:
    base = make_base()
    base.metadata.create_all(engine)
    track(engine, *base.metadata.sorted_tables)
    other = sa.create_engine(
        database_url.update_query_dict({"application_name": "billing"}), poolclass=NullPool
    )
    with other.connect() as connection:
        process = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        connection.exec_driver_sql("INSERT INTO early VALUES (1)")
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.commit()
    error: Any = caught.value.orig
    told = error.diag.message_detail
    assert f"application billing, server process {process}" in told
    assert told.startswith("by role ")
