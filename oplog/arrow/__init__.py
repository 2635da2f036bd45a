"""Entries, changes and rows of any moment as Arrow batches; then pandas, Polars, Parquet files.

Needs the extra `arrow`. Values are exact: numbers of type `numeric` are decimals or text, never
floats.
"""

from oplog.errors import ConfigurationError

try:
    import pyarrow as pa  # noqa: F401 - to say what is missing
except ModuleNotFoundError as cause:
    raise ConfigurationError(
        "oplog.arrow needs pyarrow, which is not installed",
        hint='pip install "oplog[arrow]"',
    ) from cause

from oplog.arrow.batches import Batches, to_pandas, to_polars, to_table, write_parquet
from oplog.arrow.change_batches import changes_of
from oplog.arrow.entry_batches import read_batches
from oplog.arrow.row_batches import rows_of

__all__ = [
    "Batches",
    "changes_of",
    "read_batches",
    "rows_of",
    "to_pandas",
    "to_polars",
    "to_table",
    "write_parquet",
]
