"""All heads of an archive, the damaged ones included.

A reader needs the newest head and the one before it, and stops at the first doubt. A repair has to
know how much is damaged, and goes on from the newest head that can be decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256

from oplog.archive.archive import Archive
from oplog.archive.format.head import MAX_HEAD_BYTES, Head, HeadLink, decode_head
from oplog.archive.format.path import (
    COLLECTED,
    HEAD,
    LATEST,
    MAX_HINT_BYTES,
    name_head,
    parse_head,
    parse_hint,
)
from oplog.archive.rollback import describe_older
from oplog.errors import (
    ArchiveError,
    ForeignArchiveError,
    HeadRolledBackError,
    ManifestInvalidError,
    ObjectTooLargeError,
    SignedForkError,
)
from oplog.upkeep.problem import ArchiveProblem, ProblemKind, describe_error

COLLECTED_BYTES = b"collected\n"
"""What stands under `COLLECTED`, for ever."""
_MOST_NAMED = 1000


@dataclass(slots=True)
class HeadSurvey:
    """The head to go on from, and what is wrong with heads.

    `newest` is what every reader finds, None if readers find none or refuse; `head` is the same,
    or else the newest that can be decoded. `digests` are those of the heads that are there, by
    number, whether they can be decoded or not. `forked` are the bytes of two heads that exclude
    each other, though both are signed by a publisher that is believed.
    """

    newest: Head | None = None
    head: Head | None = None
    collected: bool = False
    problems: list[ArchiveProblem] = field(default_factory=list)
    digests: dict[int, bytes] = field(default_factory=dict)
    forked: tuple[bytes, bytes] | None = None


def survey_heads(archive: Archive) -> HeadSurvey:
    """Look at every head that is there, newest first."""
    survey = HeadSurvey()
    # Before any head: one that is published meanwhile is newer than what the hint says.
    hint = _read_hint(archive)
    refused: ArchiveError | None = None
    try:
        survey.newest = archive.find_head(accept_older=True)
    except (
        ManifestInvalidError,
        HeadRolledBackError,
        ObjectTooLargeError,
        SignedForkError,
        ForeignArchiveError,
    ) as error:
        refused = error
        survey.forked = error.heads if isinstance(error, SignedForkError) else None
    _look_at_mark(archive, survey)
    numbers = {
        number for info in archive.store.list(f"{HEAD}/") if (number := parse_head(info.path))
    }
    if survey.newest is not None:
        numbers = {number for number in numbers if number <= survey.newest.number}
        numbers.add(survey.newest.number)
    expected: HeadLink | None = None
    top = max(numbers, default=0)
    for number in sorted(numbers, reverse=True):
        expected = _look_at_head(archive, survey, number, expected=expected, top=top)
    if expected is not None and not _note_hole(survey, expected.number, 0, top=top):
        message = (
            f"{COLLECTED} is missing, unless heads up to {expected.number} were deleted by hand"
        )
        if not survey.collected:
            survey.problems.append(ArchiveProblem(COLLECTED, ProblemKind.MISSING, message))
    if survey.newest is not None:
        survey.head = survey.newest
        _excuse_old(survey, survey.newest)
    elif refused is not None and not any(not one.harmless for one in survey.problems):
        survey.problems.append(
            ArchiveProblem(name_head(top), ProblemKind.INVALID, str(refused.args[0]))
        )
    _look_at_hint(archive, survey, hint)
    return survey


def _look_at_head(
    archive: Archive, survey: HeadSurvey, number: int, *, expected: HeadLink | None, top: int
) -> HeadLink | None:
    """Note what is wrong with one head; the link to the one that must be before it."""
    path = name_head(number)
    if expected is not None and expected.number > number:
        stray = _note_hole(survey, expected.number, number, top=top)
        if stray:
            survey.problems.append(
                ArchiveProblem(
                    path,
                    ProblemKind.UNEXPECTED,
                    f"{path} is where heads were collected: a worker that slept left it, or "
                    "heads after it were deleted by hand; it does not count",
                    harmless=True,
                )
            )
        expected = None
    try:
        data = archive.store.get(path, most=MAX_HEAD_BYTES)
    except ObjectTooLargeError as error:
        survey.problems.append(describe_error(error, path))
        return None
    if data is None:
        # Collected since it was listed.
        return expected
    digest = sha256(data).digest()
    survey.digests[number] = digest
    # One that the head after it names is believed for that: keys may have changed since.
    named = expected is not None and digest == expected.digest
    try:
        head = decode_head(data, what=path) if named else archive.decode_as(data, what=path)
    except (ManifestInvalidError, ForeignArchiveError) as error:
        # What was published over it has what it held, or what it should have held.
        survey.problems.append(
            ArchiveProblem(path, ProblemKind.CORRUPT, str(error.args[0]), harmless=named)
        )
        return None
    if head.number != number:
        message = f"{path} says that it is head {head.number}"
        survey.problems.append(ArchiveProblem(path, ProblemKind.INVALID, message))
        return None
    if expected is not None and digest != expected.digest:
        message = f"{path} is not the head that the one after it was built on"
        survey.problems.append(ArchiveProblem(path, ProblemKind.CHAIN, message))
    survey.head = survey.head or head
    return head.previous


def _note_hole(survey: HeadSurvey, first: int, last: int, *, top: int) -> bool:
    """Name the heads from `first` down to above `last`; True where they were collected."""
    newest = survey.newest
    needed = newest.previous.number if newest is not None and newest.previous else 0
    if survey.collected and first != needed and first + 1 != top:
        return True
    if survey.collected:
        last = first - 1
    # Where nothing keeps writers apart numbers have gaps of their own.
    for number in range(first, max(last, first - _MOST_NAMED), -1):
        survey.problems.append(
            ArchiveProblem(
                name_head(number), ProblemKind.MISSING, f"{name_head(number)} is missing"
            )
        )
        if first >> 32:
            break
    return False


def _excuse_old(survey: HeadSurvey, newest: Head) -> None:
    """Heads before the last two: readers do without them, and they are collected in time."""
    needed = newest.previous.number if newest.previous else newest.number
    for place, problem in enumerate(survey.problems):
        number = parse_head(problem.path)
        if number is not None and number < needed:
            survey.problems[place] = replace(problem, harmless=True)


def _look_at_mark(archive: Archive, survey: HeadSurvey) -> None:
    """`COLLECTED`: what keeps anybody from founding an archive that is already there."""
    try:
        found = archive.store.get(COLLECTED, most=MAX_HINT_BYTES)
    except ObjectTooLargeError as error:
        survey.collected = True
        problem = describe_error(error, COLLECTED)
        survey.problems.append(
            ArchiveProblem(COLLECTED, problem.what, problem.message, harmless=True)
        )
        return
    survey.collected = found is not None
    if found is not None and found != COLLECTED_BYTES:
        message = f"{COLLECTED} holds other bytes than it is written with; that it is there counts"
        survey.problems.append(
            ArchiveProblem(COLLECTED, ProblemKind.CORRUPT, message, harmless=True)
        )


def _read_hint(archive: Archive) -> bytes | ObjectTooLargeError | None:
    try:
        return archive.store.get(LATEST, most=MAX_HINT_BYTES)
    except ObjectTooLargeError as error:
        return error


def _look_at_hint(
    archive: Archive, survey: HeadSurvey, hint: bytes | ObjectTooLargeError | None
) -> None:
    what: ProblemKind | None = None
    if isinstance(hint, ObjectTooLargeError):
        what = ProblemKind.CORRUPT
    elif hint is None:
        what = None if survey.head is None else ProblemKind.MISSING
    else:
        named, newest = parse_hint(hint), max(survey.digests, default=0)
        if named is None:
            what = ProblemKind.INVALID
        elif named > newest:
            message = describe_older(archive.url, found=newest, named=named)
            survey.problems.append(ArchiveProblem(LATEST, ProblemKind.BEHIND, message))
    if what is not None:
        message = f"{LATEST} does not say where to look first; that costs readers some requests"
        survey.problems.append(ArchiveProblem(LATEST, what, message, harmless=True))
