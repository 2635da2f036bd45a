"""Puts sessions together: roles x what is around x writes, each with a shape and an end drawn.

The product of everything is too large to try. So each way around meets each write as each role;
shape, comment, end and reason are drawn, from the session's own name.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.sessions.arena import APPENDING, BY_STATEMENT, BYPASSING, ENDS, Session
from tests.sessions.around import AROUND, Around
from tests.sessions.writes import COMMENTS, SHAPES, WRITES

REASONS: Mapping[str, Around] = {
    "": Around(),
    "reason": Around(("SET LOCAL oplog.bypass = 'repair'",)),
    "reason after": Around((), ("SET LOCAL oplog.bypass = 'repair'",)),
}
WRITES_FOR_A_SETTING = 6


@dataclass(frozen=True)
class Case:
    """What names a session; the rest of it follows."""

    role: str
    around: str
    write: str


def list_cases(role: str, settings: Mapping[str, Around], *, version: int) -> list[Case]:
    """All cases of a role, in an order that stays; `settings` are ways of the server's own."""
    writes = [name for name, write in WRITES.items() if write.oldest <= version]
    # What only a malicious role sends is judged where it can be: `test_malicious_roles.py`.
    ways = [name for name, way in AROUND.items() if not (way.forged and role in APPENDING)]
    return [
        *(Case(role, around, write) for around in ways for write in writes),
        *(
            Case(role, setting, write)
            for setting in settings
            for write in random.Random(f"{role}/{setting}").sample(writes, WRITES_FOR_A_SETTING)
        ),
    ]


def build(case: Case, settings: Mapping[str, Around]) -> Session:
    """The session of a case."""
    draw = random.Random(f"{case.role}/{case.around}/{case.write}")
    about = AROUND.get(case.around) or settings[case.around]
    what = WRITES[case.write]
    copied = what.statements[0].startswith("COPY")
    ends = BY_STATEMENT if copied else list(ENDS)
    shape, comment, end = (_draw(axis, draw) for axis in (list(SHAPES), list(COMMENTS), ends))
    likely = 0.8 if case.role in BYPASSING else 0.2
    reason = draw.choice(list(REASONS)) if draw.random() < likely else ""
    why = REASONS[reason]
    made: list[str] = []
    for statement in what.statements:
        made += [statement] if what.alone else SHAPES[shape](statement)
    statements = [*why.before, *about.before, *COMMENTS[comment](made), *about.after, *why.after]
    words = [case.around, case.write, "" if what.alone else shape, comment, end, reason]
    name = " | ".join(word for word in (case.role, *words) if word)
    return Session(name, case.role, tuple(statements), end)


def _draw(names: Sequence[str], draw: random.Random) -> str:
    # The plain one often: most others fail for a reason of their own now and then.
    return names[0] if draw.random() < 0.4 else draw.choice(names)
