"""What the catalogs say about a log, and a project that migrates one with Alembic."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import dedent

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import URL

from oplog.postgres.quoting import (
    quote,
    quote_literal,
)
from oplog.schema.guard import make_prefix

# An application's own environment, as `alembic init` writes it, reduced to what matters here.
ENVIRONMENT = """
    import sqlalchemy as sa
    from alembic import context

    import oplog.migration

    url = context.config.attributes["url"]
    if context.is_offline_mode():
        context.configure(url=url, OPTIONS)
        with context.begin_transaction():
            context.run_migrations()
    else:
        with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
            context.configure(connection=connection)
            with context.begin_transaction():
                context.run_migrations()
"""
# What `alembic init` writes, and what is left when somebody tidied up.
TEMPLATE_OPTIONS = 'literal_binds=True, dialect_opts={"paramstyle": "named"}'
BARE_OPTIONS = "literal_binds=True"

# A schema's name with all that SQLAlchemy, the driver or SQL could take for something else.
ODD = 'a "log": 100%s %(of)s :it'

REVISION = """
    import sqlalchemy as sa
    from alembic import op

    revision = "one"
    down_revision = None


    def upgrade():
        op.create_table("account", sa.Column("id", sa.BigInteger, primary_key=True))
        UPGRADE


    def downgrade():
        DOWNGRADE
        op.drop_table("account")
"""


class Application:
    """Somebody's project with an Alembic environment and one revision."""

    def __init__(self, directory: Path, url: URL) -> None:
        self.directory = directory
        self.url = url

    def write(
        self, *, upgrade: str, downgrade: str = "pass", options: str = TEMPLATE_OPTIONS
    ) -> Application:
        versions = self.directory / "versions"
        versions.mkdir(exist_ok=True)
        (self.directory / "env.py").write_text(dedent(ENVIRONMENT).replace("OPTIONS", options))
        revision = dedent(REVISION).replace("UPGRADE", upgrade).replace("DOWNGRADE", downgrade)
        (versions / "one.py").write_text(revision)
        return self

    def config(self, output: io.StringIO | None = None) -> Config:
        config = Config(output_buffer=output, attributes={"url": self.url})
        config.set_main_option("script_location", str(self.directory).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        return config

    def upgrade(self) -> None:
        command.upgrade(self.config(), "head")

    def downgrade(self) -> None:
        command.downgrade(self.config(), "base")

    def print_upgrade(self) -> str:
        output = io.StringIO()
        command.upgrade(self.config(output), "head", sql=True)
        return output.getvalue()

    def print_downgrade(self) -> str:
        output = io.StringIO()
        command.downgrade(self.config(output), "one:base", sql=True)
        return output.getvalue()


DESCRIPTION = """
SELECT 'relation', oid::regclass::text, relkind::text,
       -- Where it is at home is another in each database.
       concat_ws(' ', reloptions, regexp_replace(obj_description(oid, 'pg_class'),
         '(database|row) [0-9]+', '', 'g'))
  FROM pg_class WHERE relnamespace = %(schema)s::regnamespace
UNION ALL
SELECT 'column', attrelid::regclass::text, attname, concat_ws(' ', format_type(atttypid, atttypmod),
       attnotnull, attstorage, attcollation::regcollation, pg_get_expr(adbin, adrelid))
  FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
 WHERE relnamespace = %(schema)s::regnamespace AND attnum > 0
UNION ALL
SELECT 'index', indexrelid::regclass::text, '', pg_get_indexdef(indexrelid)
  FROM pg_index JOIN pg_class c ON c.oid = indexrelid
 WHERE relnamespace = %(schema)s::regnamespace
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace = %(schema)s::regnamespace
UNION ALL
SELECT 'trigger', tgrelid::regclass::text, tgname, concat(tgenabled, ' ', pg_get_triggerdef(t.oid))
  FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
 WHERE relnamespace = %(schema)s::regnamespace
UNION ALL
SELECT 'function', oid::regprocedure::text, '', pg_get_functiondef(oid)
  FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace
UNION ALL
SELECT 'right', p.oid::regprocedure::text, x.privilege_type,
       CASE x.grantee WHEN 0 THEN 'PUBLIC' WHEN proowner THEN 'owner' ELSE 'somebody' END
  FROM pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) x
 WHERE pronamespace = %(schema)s::regnamespace AND x.grantee IN (0, proowner)
ORDER BY 1, 2, 3, 4"""

Described = list[tuple[str, ...]]


def describe(url: URL, schema: str = "oplog") -> Described:
    """All that the catalogs say about the log in a schema, as if that were called `oplog`."""
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        connection.exec_driver_sql("SET search_path = ''")
        found = connection.exec_driver_sql(DESCRIPTION, {"schema": quote(schema)}).fetchall()
    renamed = [
        tuple(
            str(cell)
            .replace(f"{quote(schema)}.", "oplog.")
            .replace(f"{schema}.", "oplog.")
            .replace(make_prefix(schema), "oplog")
            .replace(quote_literal(schema), "'oplog'")
            for cell in row
        )
        for row in found
    ]
    described = [row for row in renamed if row[1].startswith("oplog.oplog_")]
    kinds = {row[0] for row in described}
    assert kinds == {
        "relation",
        "column",
        "index",
        "constraint",
        "trigger",
        "function",
        "right",
    }
    return described


def run_script(url: URL, script: str) -> None:
    """Feed printed SQL to the server as `psql -f` does: as it is, in one piece."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute(script)


def list_schemas(url: URL) -> set[str]:
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        return set(sa.inspect(connection).get_schema_names())


def list_tables(url: URL, schema: str = "public") -> set[str]:
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        return set(sa.inspect(connection).get_table_names(schema))
