"""`AggregateTemplate`: how the name of a row's aggregate is made of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter

from oplog.entry import check_aggregate_name
from oplog.errors import ConfigurationError, EntryError


class AggregateTemplate:
    """A name with column names in braces, such as `order/{order_id}`."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as cause:
            raise ConfigurationError(
                f"aggregate template {text!r} cannot be read: {cause}",
                hint="write column names in braces, such as 'order/{order_id}'",
            ) from cause
        self._pieces: list[tuple[str, str | None]] = []
        for literal, name, spec, conversion in parsed:
            if name is not None and (spec or conversion or not name):
                raise ConfigurationError(
                    f"aggregate template {text!r} has more than a column name in braces",
                    hint="write plain column names, such as 'order/{order_id}'",
                )
            self._pieces.append((literal, name))
        self.columns = tuple(name for _, name in self._pieces if name is not None)
        if not self.columns:
            _check_constant(text)
        self.constant = "" if self.columns else self.render({})
        """The name, if it is the same for every row; else empty."""

    def render(self, texts: Mapping[str, str | None]) -> str:
        """Return a row's aggregate name; `texts` are column values in Postgres' text form."""
        out = []
        for literal, name in self._pieces:
            out.append(literal)
            if name is not None:
                text = texts[name]
                out.append("null" if text is None else text)
        return "".join(out)

    def rename(self, names: Mapping[str, str]) -> AggregateTemplate:
        """The template with other names of columns; those that are not in `names` stay."""
        out = []
        for literal, name in self._pieces:
            out.append(literal.replace("{", "{{").replace("}", "}}"))
            if name is not None:
                out.append(f"{{{names.get(name, name)}}}")
        return AggregateTemplate("".join(out))


def _check_constant(text: str) -> None:
    try:
        check_aggregate_name(text)
    except EntryError as cause:
        raise ConfigurationError(
            f"aggregate template {text!r} is not a valid name: {cause.args[0]}",
            hint=cause.hint,
        ) from cause
