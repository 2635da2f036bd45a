"""A type bound to a table that need not exist: what capture's rules work on, without a server."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from oplog.catalog import DeclaredType
from oplog.payload.aggregate_template import AggregateTemplate
from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveTable
from oplog.type_binding import BoundType
from oplog.value import codec_for

Columns = Sequence[tuple[str, str]]


def make_shape(
    columns: Columns, *, key: Sequence[str], name: str = "item", aggregate: str = ""
) -> Shape:
    """The first revision of a type."""
    declared = [
        DeclaredColumn(column, pg_type, codec_for(pg_type).kind, column in key)
        for column, pg_type in columns
    ]
    return derive_shape(
        name,
        declared,
        schema="public",
        table=name,
        aggregate=aggregate or name,
        excluded={},
        stored=[],
    )


def make_bound(
    columns: Columns, *, key: Sequence[str], aggregate: str, name: str = "item", oid: int = 7
) -> BoundType:
    """A bound type with these columns."""
    declared = DeclaredType(name, sa.Table(name, sa.MetaData()), AggregateTemplate(aggregate))
    live = LiveTable(oid, "public", name, "r", (), rewrites_rows=False)
    return BoundType(declared, make_shape(columns, key=key, name=name, aggregate=aggregate), live)
