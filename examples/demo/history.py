"""A repository's history: the files that each commit changed, and git's listing of all files.

Read from git in a checkout, otherwise from the file beside this module. Git is asked so that the
user's configuration does not change the answer: first parents only, a rename as a deletion and
an addition, raw names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = Path(__file__).with_name("history.jsonl")
FEWEST_COMMITS = 10
GIT_SECONDS = 60
_FIELDS = "\x1f"

Listing = Mapping[str, tuple[str, str]]
"""Mode and blob of each file by path."""


class NoHistoryError(Exception):
    """Git cannot be asked, for the reason given."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """What a commit did to one path; `kind` is git's letter: A, M, D or T."""

    kind: str
    path: str
    mode: str
    blob: str


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit on the line of first parents."""

    commit: str
    author: str
    time: str
    subject: str
    changes: tuple[FileChange, ...]


@dataclass(frozen=True, slots=True)
class History:
    """Commits, oldest first. `list_files` gives the files after each one in `listed`.

    `witness` ends a sentence: the source of the listings.
    """

    source: str
    commits: tuple[Commit, ...]
    listed: tuple[str, ...]
    list_files: Callable[[str], Listing]
    witness: str


def find_history(*, limit: int, root: Path = ROOT, bundled: bool = False) -> History:
    """Return the newest `limit` commits of the checkout at `root`, or the bundled history.

    With `bundled` no checkout is looked for.
    """
    if bundled:
        return read_bundled("as was asked")
    try:
        return read_checkout(root, limit=limit)
    except NoHistoryError as error:
        return read_bundled(str(error))


def read_checkout(root: Path, *, limit: int) -> History:
    """Read the history of the checkout at `root`; `NoHistoryError` without enough commits."""
    top = _ask_git(root, "rev-parse", "--show-toplevel").decode(errors="replace").rstrip("\n")
    if Path(top).resolve() != root.resolve():
        raise NoHistoryError("this directory belongs to another repository")
    said = _ask_git(
        root, "-c", "log.showRoot=true", "log", "--first-parent", "-m", "--reverse",
        f"--max-count={limit}", "--raw", "-z", "--no-renames", "--no-abbrev", "--no-color",
        "--no-show-signature", "--ignore-submodules=none",
        "--format=tformat:%x1f%H%x1f%an%x1f%cI%x1f%s",
    )  # fmt: skip
    commits = list(_parse_log(said))
    if len(commits) < FEWEST_COMMITS:
        raise NoHistoryError(f"this repository has no more than {len(commits)} commits so far")

    def list_files(commit: str) -> Listing:
        return dict(_parse_tree(_ask_git(root, "ls-tree", "-r", "-z", "--full-tree", commit)))

    # The first one may have ancestors that are not loaded, so it adds all of its files.
    commits[0] = _begin_with(commits[0], list_files(commits[0].commit))
    return History(
        "this repository's own git history", tuple(commits),
        tuple(c.commit for c in commits if c.changes), list_files,
        "what git lists",
    )  # fmt: skip


def read_bundled(reason: str, *, path: Path = BUNDLED) -> History:
    """The history in the file at `path`, with the listings that git gave when it was made."""
    commits, listings = [], {}
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        changes = tuple(FileChange(*change) for change in record["changes"])
        commits.append(
            Commit(record["commit"], record["author"], record["time"], record["subject"], changes)
        )
        if record["files"] is not None:
            listings[record["commit"]] = {name: (m, b) for name, m, b in record["files"]}
    return History(
        f"a small bundled history ({reason})",
        tuple(commits),
        tuple(listings),
        listings.__getitem__,
        "what git listed when it was recorded",
    )


def record_history(history: History, *, every: int) -> Iterator[str]:
    """Lines of a bundled history; git's listing goes with each `every`th commit and the last."""
    final = len(history.commits) - 1
    for number, commit in enumerate(history.commits):
        asked = number % every == every - 1 or number == final
        files = history.list_files(commit.commit) if asked and commit.changes else None
        record = {
            "commit": commit.commit,
            "author": commit.author,
            "time": commit.time,
            "subject": commit.subject,
            "changes": [[c.kind, c.path, c.mode, c.blob] for c in commit.changes],
            "files": files and [[path, *found] for path, found in files.items()],
        }
        yield json.dumps(record, ensure_ascii=False)


def choose_listed(history: History, count: int) -> list[str]:
    """At most `count` commits whose files are known, spread evenly, the newest included."""
    listed = history.listed
    count = min(count, len(listed))
    return [listed[(n + 1) * len(listed) // count - 1] for n in range(count)]


def _ask_git(root: Path, *arguments: str) -> bytes:
    git = shutil.which("git")
    if git is None:
        raise NoHistoryError("git is not installed")
    # In a git hook, for example, variables point git at another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_NO_REPLACE_OBJECTS": "1", "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603 - git by its absolute path, arguments of our own
            [git, "-C", str(root), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_SECONDS,
            env=environment,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise NoHistoryError(f"git says: {said[0]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoHistoryError(f"git cannot be asked: {error}") from error
    return done.stdout


def _parse_log(said: bytes) -> Iterator[Commit]:
    """Headers begin with the field separator, changes with a colon; each ends with NUL."""
    head: list[str] = []
    changes: list[FileChange] = []
    tokens = iter(_decode(said).split("\0"))
    for token in tokens:
        text = token.removeprefix("\n")
        if text.startswith(":"):
            _, mode, _, blob, kind = text[1:].split(" ")
            changes.append(FileChange(kind, next(tokens), mode, blob))
        elif text.startswith(_FIELDS):
            if head:
                yield Commit(head[0], head[1], head[2], head[3], tuple(changes))
            head, changes = text[1:].split(_FIELDS, 3), []
    if head:
        yield Commit(head[0], head[1], head[2], head[3], tuple(changes))


def _parse_tree(said: bytes) -> Iterator[tuple[str, tuple[str, str]]]:
    for line in _decode(said).split("\0"):
        if line:
            facts, _, path = line.partition("\t")
            mode, _, blob = facts.split(" ")
            yield path, (mode, blob)


def _begin_with(commit: Commit, files: Listing) -> Commit:
    changes = tuple(FileChange("A", path, mode, blob) for path, (mode, blob) in files.items())
    return Commit(commit.commit, commit.author, commit.time, commit.subject, changes)


def _decode(said: bytes) -> str:
    # Git's names are bytes; names that are not UTF-8 are escaped so that Postgres can store them.
    return said.decode("utf-8", "backslashreplace")
