"""Entries and changes as Arrow record batches, and from there to pandas, Polars and Parquet files.

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

__all__ = [
    "Batches",
    "changes_of",
    "read_batches",
    "to_pandas",
    "to_polars",
    "to_table",
    "write_parquet",
]
