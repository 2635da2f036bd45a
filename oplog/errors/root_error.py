"""The root of the tree of errors, and the library's warnings."""

from __future__ import annotations

from typing import ClassVar


class OplogError(Exception):
    """Root of the tree.

    `hint` says what to do; `retryable` whether re-running the work may help; `exit_code` is that
    of the command line (1 failed, 2 usage, 3 differences or corruption, 10 schema version,
    11 lease, 12 key, 13 store).
    """

    retryable: bool = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", retryable: bool | None = None) -> None:
        """`retryable` overrides what the class says."""
        super().__init__(message)
        self.hint = hint
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message


class _Advice(UserWarning):
    def __init__(self, message: str) -> None:
        super().__init__(message)


class DurabilityNotConfirmedWarning(_Advice):
    """The wait of a COMMIT for its standby was cut short: a failover may lose the commit."""


class RestoreWarning(_Advice):
    """The log holds rows that a restore will refuse."""


class QuarantineWarning(_Advice):
    """A record that cannot be read was passed over, because the owner has quarantined it."""


class CatalogWarning(_Advice):
    """Tables of the models are not in the catalog: what is written to them is not logged."""
