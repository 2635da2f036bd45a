"""Errors of set-up and use: what cannot work, or is refused."""

from __future__ import annotations

from oplog.errors.root_error import OplogError


class ConfigurationError(OplogError):
    """The log was set up or called in a way that cannot work."""

    exit_code = 2


class UnknownTypeError(ConfigurationError):
    """The catalog does not have this type name or mapped class."""

    exit_code = 1


class NotCapturableError(ConfigurationError):
    """A table, column or statement was refused: its effect cannot be logged exactly."""

    exit_code = 1


class UnloggedWriteError(ConfigurationError):
    """Tracked rows changed without an entry."""

    exit_code = 1


class SchemaVersionError(ConfigurationError):
    """The log's tables are missing, or older or newer than this library expects."""

    exit_code = 10


class ForeignServerError(ConfigurationError):
    """The log in this database, or the archive, was written from another database."""


class PrunedError(ConfigurationError):
    """The requested entries were pruned from the database and are only in an archive."""
