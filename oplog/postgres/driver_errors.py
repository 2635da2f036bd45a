"""The driver's errors by which rooms above tell what a server refused.

They are psycopg's own classes, so an `except` catches what the driver raises.
"""

from psycopg import DataError, Error, IntegrityError
from psycopg.errors import (
    CheckViolation,
    DependentObjectsStillExist,
    GeneratedAlways,
    NotNullViolation,
    UniqueViolation,
)

__all__ = [
    "CheckViolation",
    "DataError",
    "DependentObjectsStillExist",
    "Error",
    "GeneratedAlways",
    "IntegrityError",
    "NotNullViolation",
    "UniqueViolation",
]
