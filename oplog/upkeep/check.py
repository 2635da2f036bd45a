"""An archive checked, without keys: every object that the newest head reaches.

A check goes on after damage, and reports each damaged object by its name. Memory is bounded but
for a few bytes for each object and each aggregate. Segments behind a damaged node are looked for
in the store's listing; what the listing leaves out is not reported as missing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import TypeAlias

from sqlalchemy.engine import Connection, Engine

from oplog.archive.archive import Archive
from oplog.archive.format.head import MAX_HEAD_BYTES, Branch, Head
from oplog.archive.format.index import Item, Levels
from oplog.archive.format.path import HEAD, LOG, PIN, name_head, parse_content
from oplog.archive.format.segment import Segment, decode_segment
from oplog.archive.read_ahead import read_ahead
from oplog.errors import ArchiveError, ConfigurationError
from oplog.store import Store
from oplog.store.export import ExportStore
from oplog.store.quarantined import QuarantinedRecord, list_marked
from oplog.upkeep.continuity import Continuity
from oplog.upkeep.head_survey import HeadSurvey, survey_heads
from oplog.upkeep.log_comparison import LogComparison
from oplog.upkeep.problem import ArchiveProblem, ArchiveReport, ProblemKind, describe_error
from oplog.upkeep.snapshot_check import ChunkJob, check_chunk, iterate_chunk_jobs, look_at
from oplog.upkeep.tree_walk import Place, walk_tree

CheckProgress: TypeAlias = Callable[[int, int], None]
"""Told now and then: objects looked at, and bytes read."""

_THREADS = 4
_READ_AHEAD_BYTES = 64 * 1024 * 1024
"""Of segments, as stored, unless one alone is larger."""


def check_archive(
    archive: Archive,
    *,
    connection: Connection | None = None,
    store: ExportStore | None = None,
    sample: float | None = None,
    progress: CheckProgress | None = None,
    pruned_through: int = 0,
) -> ArchiveReport:
    """Verify every object that the newest head reaches, and heads and pins.

    With `connection`, which is in no transaction, and the log's `store`, archive and log are
    compared record by record as well, in short transactions; records up to sequence
    `pruned_through` may be gone from the database. With `sample`, from 0 to 1, that part of the
    segments and chunks is read, drawn at random, and of the others only presence and size are
    looked at. Damage is reported, never
    raised; `StoreUnavailableError` and `StorageConfigError` say that nothing could be found out.
    """
    if sample is not None and not 0 <= sample <= 1:
        raise ConfigurationError(
            f"a sample of {sample} cannot be drawn", hint="give a share from 0 to 1"
        )
    return _Check(archive, sample, progress).run(connection, store, pruned_through=pruned_through)


def check_with_log(
    archive: Archive,
    engine: Engine,
    *,
    schema: str,
    sample: float | None = None,
    progress: CheckProgress | None = None,
) -> ArchiveReport:
    """`check_archive` against the log in `schema`; writes nothing."""
    with engine.connect() as connection:
        with connection.begin():
            Store(schema).require_home(connection)
        return check_archive(
            archive,
            connection=connection,
            store=ExportStore(schema),
            sample=sample,
            progress=progress,
        )


class _Check:
    """One check under way."""

    def __init__(
        self, archive: Archive, sample: float | None, progress: CheckProgress | None
    ) -> None:
        self._archive = archive
        self._sample = sample
        self._progress = progress
        self._problems: list[ArchiveProblem] = []
        self._noted: set[str] = set()
        self._seen: set[bytes] = set()
        self._hidden: list[Item] = []
        self._bytes = 0
        self._entries = 0
        self._marks: list[QuarantinedRecord] = []
        self._comparison: LogComparison | None = None

    def run(
        self, connection: Connection | None, store: ExportStore | None, *, pruned_through: int
    ) -> ArchiveReport:
        survey = survey_heads(self._archive)
        self._problems += survey.problems
        head = survey.head
        if connection is not None and store is not None:
            # Begun now: what the head holds was committed before, and so it is seen.
            self._comparison = LogComparison(
                connection, store, note=self._note, pruned_through=pruned_through
            )
            self._comparison.begin(self._archive, head, readable=survey.newest is not None)
        if head is None:
            self._note_empty(survey)
            return self._report(survey, None)
        self._check_head(head)
        self._check_pins(head)
        self._look_for_hidden(head)
        if self._comparison is not None:
            # Of a sample the positions are not all known: what was not read is not lost.
            whole = self._sample is None and all(p.harmless for p in self._problems)
            self._comparison.finish(complete=whole)
        return self._report(survey, head)

    # -- what is reached ------------------------------------------------------------------

    def _check_head(self, head: Head) -> None:
        branches = [branch for branch in head.branches if _is_on_history(branch, head)]
        continuity = Continuity(
            head.log_id,
            note=self._note,
            first=head.first_sequence,
            wanted={one.sequence for one in head.snapshots} | {one.sequence for one in branches},
            links=self._sample is None,
        )
        self._check_segments(head.levels, continuity, after=head.first_sequence - 1)
        continuity.finish(head.sequence, head.chain)
        for branch in branches:
            if continuity.find_chain(branch.sequence) not in (None, branch.chain):
                message = f"the branch left at {branch.sequence} is of another history"
                path = name_head(head.number)
                self._note(ArchiveProblem(path, ProblemKind.CHAIN, message, branch.sequence))
        self._check_rest(head, continuity.find_chain)

    def _check_rest(self, head: Head, find_chain: Callable[[int], bytes | None]) -> None:
        """All that a head names but its log."""
        for branch in head.branches:
            side = Continuity(
                head.log_id,
                note=self._note_once,
                first=branch.sequence + 1,
                cut_chain=branch.chain,
            )
            self._check_segments(branch.levels, side, after=branch.sequence, compare=False)
            side.finish(branch.last, None)
        if head.types is not None and self._enter(head.types.path):
            self._check_types(head)
        jobs = iterate_chunk_jobs(
            self._archive, head, find_chain=find_chain, note=self._note_once, enter=self._enter
        )
        for _, problem in read_ahead(jobs, self._check_chunk, threads=_THREADS):
            if problem is not None:
                self._note(problem)

    def _check_chunk(self, job: ChunkJob) -> ArchiveProblem | None:
        return check_chunk(self._archive, job, whole=self._is_drawn())

    def _check_segments(
        self,
        levels: Levels,
        continuity: Continuity,
        *,
        after: int,
        compare: bool = True,
    ) -> None:
        places = walk_tree(
            self._archive,
            levels,
            after=after,
            note=self._note_once,
            on_node=lambda item, _: self._count_node(item),
        )
        for place, found in self._read_segments(places):
            item = place.item
            if place.level:
                self._hidden.append(item)
            else:
                self._enter(item.path, item.size_bytes)
            if isinstance(found, ArchiveProblem):
                self._note_once(found)
            segment = found if isinstance(found, Segment) else None
            continuity.add(item, segment)
            if segment is None:
                continue
            self._entries += sum(len(record.aggregates) for record in segment.records)
            if compare:
                self._marks += list_marked(segment.records)
            if compare and self._comparison is not None:
                self._comparison.add(item, segment)

    def _read_segments(
        self, places: Iterable[Place]
    ) -> Iterator[tuple[Place, Segment | ArchiveProblem | None]]:
        return read_ahead(
            places,
            self._read_segment,
            threads=_THREADS,
            most_bytes=_READ_AHEAD_BYTES,
            # A node that hides its segments is not read again.
            measure=lambda place: 0 if place.level else place.item.size_bytes,
        )

    def _read_segment(self, place: Place) -> Segment | ArchiveProblem | None:
        """The segment, what is wrong with it, or None for one that was not read."""
        item = place.item
        if place.level:
            return None
        try:
            if not self._is_drawn():
                return look_at(self._archive, item.path, item.size_bytes, item.first)
            return self._archive.read_segment(item)
        except ArchiveError as error:
            return describe_error(error, item.path, sequence=item.first)

    def _is_drawn(self) -> bool:
        return self._sample is None or random.random() < self._sample  # noqa: S311

    def _count_node(self, item: Item) -> None:
        self._enter(item.path)

    def _check_types(self, head: Head) -> None:
        if head.types is None:
            return
        path = head.types.path
        try:
            types = self._archive.read_types(head)
        except ArchiveError as error:
            self._note(describe_error(error, path))
            return
        found = (len(types.shapes), len(types.key_checks))
        if found != (head.types.types, head.types.keys):
            message = (
                f"{path} holds {found[0]} types and {found[1]} keys, its head claims "
                f"{head.types.types} and {head.types.keys}"
            )
            self._note(ArchiveProblem(path, ProblemKind.COUNT, message))

    # -- pins and what is hidden ----------------------------------------------------------

    def _check_pins(self, head: Head) -> None:
        for info in sorted(self._archive.store.list(f"{PIN}/"), key=lambda one: one.path):
            try:
                data = self._archive.store.get(info.path, most=MAX_HEAD_BYTES)
                if data is None:
                    continue
                self._enter(info.path, len(data))
                pinned = self._archive.decode_as(data, what=info.path)
            except ArchiveError as error:
                problem = describe_error(error, info.path)
                self._note(ArchiveProblem(info.path, ProblemKind.CORRUPT, problem.message))
                continue
            if (pinned.archive_id, pinned.log_id) != (head.archive_id, head.log_id):
                message = f"{info.path} is a head of another archive"
                self._note(ArchiveProblem(info.path, ProblemKind.INVALID, message))
                continue
            if not info.path.endswith(f"-{pinned.number:016x}"):
                message = f"{info.path} is a copy of head {pinned.number}"
                self._note(ArchiveProblem(info.path, ProblemKind.INVALID, message))
            self._check_pinned(pinned)

    def _check_pinned(self, pinned: Head) -> None:
        """What a pin keeps and the newest head no longer has."""
        places = walk_tree(
            self._archive,
            pinned.levels,
            after=pinned.first_sequence - 1,
            note=self._note_once,
            on_node=lambda item, _: self._count_node(item),
        )
        fresh = (place for place in places if not place.level and self._enter(place.item.path))
        for _, found in self._read_segments(fresh):
            if isinstance(found, ArchiveProblem):
                self._note_once(found)
        self._check_rest(pinned, lambda _: None)

    def _look_for_hidden(self, head: Head) -> None:
        """Look at segments that may be those a damaged node leads to."""
        if not self._hidden:
            return

        def find() -> Iterator[str]:
            for info in self._archive.store.list(f"{LOG}/"):
                try:
                    number = parse_content(info.path, LOG).number
                except ArchiveError:
                    continue
                if self._key(info.path) in self._seen or number < head.first_sequence:
                    continue
                if any(one.first <= number <= one.last for one in self._hidden):
                    yield info.path

        for path, problem in read_ahead(find(), self._read_hidden, threads=_THREADS):
            self._enter(path)
            if problem is not None:
                self._note(problem)

    def _read_hidden(self, path: str) -> ArchiveProblem | None:
        try:
            decode_segment(self._archive.read_content(path), what=path)
        except ArchiveError as error:
            return describe_error(error, path, sequence=parse_content(path).number)
        return None

    # -- the report -----------------------------------------------------------------------

    def _note(self, problem: ArchiveProblem) -> None:
        self._problems.append(problem)

    def _note_once(self, problem: ArchiveProblem) -> None:
        """Note what another head, or a branch, may have led to before."""
        if problem.path not in self._noted:
            self._noted.add(problem.path)
            self._problems.append(problem)

    def _note_empty(self, survey: HeadSurvey) -> None:
        if all(problem.harmless for problem in survey.problems):
            message = f"{self._archive.url} holds no archive: there is no head"
            self._note(ArchiveProblem(f"{HEAD}/", ProblemKind.MISSING, message))

    @staticmethod
    def _key(path: str) -> bytes:
        return sha256(path.encode()).digest()[:8]

    def _enter(self, path: str, size: int = 0) -> bool:
        """Count an object of `size` bytes; False if it was looked at before."""
        key = self._key(path)
        if key in self._seen:
            return False
        self._seen.add(key)
        self._bytes += size
        if self._progress is not None and len(self._seen) % 100 == 0:
            self._progress(len(self._seen), self._bytes)
        return True

    def _report(self, survey: HeadSurvey, head: Head | None) -> ArchiveReport:
        objects = len(self._seen) + len(survey.digests)
        if self._progress is not None:
            self._progress(objects, self._bytes)
        return ArchiveReport(
            problems=tuple(self._problems),
            objects=objects,
            bytes=self._bytes,
            entries=self._entries,
            sequence=0 if head is None else head.sequence,
            head=0 if head is None else head.number,
            generation=0 if head is None else head.generation,
            quarantined=tuple(self._marks),
            forked=survey.forked,
        )


def _is_on_history(branch: Branch, head: Head) -> bool:
    """Whether a branch was left where the log goes on now, and not by a later branch."""
    later = [one.sequence for one in head.branches if one.generation > branch.generation]
    return branch.sequence <= min((head.sequence, *later))
