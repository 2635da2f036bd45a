"""What names a web request in the metadata of its records: an id, and the route that it took.

Headers and paths are somebody else's text. What is no plain id is replaced, so that it cannot stop
a COMMIT, and a path is never stored: it may hold what metadata must not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from oplog.metadata_context import Metadata
from oplog.ordered_id import draw_ordered_id

_REQUEST_ID = re.compile(r"[!-~]{1,128}")


def choose_request_id(header: str) -> str:
    """The id that a header gives, if it is 1 to 128 visible ASCII characters, else a new one."""
    return header if _REQUEST_ID.fullmatch(header) else str(draw_ordered_id())


def name_route(method: object, mount: object, template: object) -> str | None:
    """`POST /api/accounts/{number}`; None where the framework did not say which route it is."""
    if not isinstance(template, str) or not template:
        return None
    return f"{method} {mount or ''}{template}"


def describe_nothing(_: Mapping[str, Any]) -> Metadata:
    """What an application says of a request by default."""
    return {}
