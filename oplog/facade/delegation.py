"""Methods that an object has from its parts, with their signatures and documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


class PartMethod(Generic[S, P, R]):
    """A method of the part that is held under a name.

    On an instance it is the part's bound method; on the class it is the function, so that
    `help`, `inspect` and type checkers see what they would see of a method written there.
    """

    def __init__(self, part: str, function: Callable[Concatenate[S, P], R]) -> None:
        self._part = part
        self._function = function

    @overload
    def __get__(self, whole: None, owner: type) -> Callable[Concatenate[S, P], R]: ...
    @overload
    def __get__(self, whole: object, owner: type) -> Callable[P, R]: ...
    def __get__(self, whole: object | None, owner: type) -> Any:
        """The part's bound method, or the function where there is no instance."""
        if whole is None:
            return self._function
        return getattr(getattr(whole, self._part), self._function.__name__)
