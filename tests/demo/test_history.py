"""The demonstration's reading of a git history, against git and against itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from examples.demo.history import (
    FEWEST_COMMITS,
    Commit,
    History,
    Listing,
    choose_listed,
    find_history,
    read_bundled,
    read_checkout,
    record_history,
)

pytestmark = pytest.mark.unit
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def fold(commits: tuple[Commit, ...], *, through: str) -> Listing:
    """The files after a commit, from the changes alone."""
    files: dict[str, tuple[str, str]] = {}
    for commit in commits:
        for change in commit.changes:
            assert (change.kind == "A") == (change.path not in files)
            if change.kind == "D":
                del files[change.path]
            else:
                files[change.path] = (change.mode, change.blob)
        if commit.commit == through:
            return files
    raise AssertionError(f"{through} is not among the commits")


def git(root: Path, *arguments: str) -> None:
    who = {f"GIT_{role}_{part}": "Zoë Q. Tester" for role in ("AUTHOR", "COMMITTER")
           for part in ("NAME", "EMAIL")}  # fmt: skip
    # Settings of whoever runs the tests must not decide what they see.
    plain = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    subprocess.run(
        ["git", "-C", str(root), *arguments],
        check=True, capture_output=True, env={**inherited, **who, **plain},
    )  # fmt: skip


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, "utf-8")


def commit_all(root: Path, subject: str) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", subject)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Twelve commits on the first-parent line, with everything that makes parsing hard."""
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    for number in range(FEWEST_COMMITS - 2):
        write(root, f"deep/ er/file {number}.txt", f"same words {number % 2}")
        write(root, "ever changing", str(number))
        commit_all(root, f"number {number}\n\nwith a body: not a subject")
    git(root, "mv", "deep/ er/file 1.txt", ":begins with a colon")
    write(root, "naïve\ttab\nand newline", "x")
    commit_all(root, "rename, and a name to trip over")
    git(root, "checkout", "-q", "-b", "side")
    write(root, "from the side", "merged")
    commit_all(root, "on the side")
    git(root, "checkout", "-q", "main")
    commit_all(root, "an empty one")
    git(root, "merge", "-q", "--no-ff", "-m", "merge the side", "side")
    git(root, "rm", "-q", "ever changing")
    (root / "ever changing").mkdir()
    (root / "ever changing" / "link").symlink_to("../deep")
    commit_all(root, "a directory takes a file's place")
    return root


@needs_git
def test_changes_add_up_to_what_git_lists(checkout: Path) -> None:
    history = read_checkout(checkout, limit=100)
    assert len(history.commits) == FEWEST_COMMITS + 2
    for commit in history.listed:
        assert fold(history.commits, through=commit) == history.list_files(commit)
    assert "from the side" in history.list_files(history.listed[-1])
    assert {c.author for c in history.commits} == {"Zoë Q. Tester"}
    assert history.commits[0].subject == "number 0"
    assert not [c for c in history.commits if c.subject == "on the side"]


@needs_git
def test_a_part_of_the_history_begins_with_all_files(checkout: Path) -> None:
    history = read_checkout(checkout, limit=FEWEST_COMMITS)
    assert len(history.commits) == FEWEST_COMMITS
    assert {change.kind for change in history.commits[0].changes} == {"A"}
    for commit in history.listed:
        assert fold(history.commits, through=commit) == history.list_files(commit)


@needs_git
def test_a_recorded_history_reads_like_the_original(checkout: Path, tmp_path: Path) -> None:
    original = read_checkout(checkout, limit=100)
    recording = tmp_path / "history.jsonl"
    recording.write_text("\n".join(record_history(original, every=1)), "utf-8")
    bundled = read_bundled("a test", path=recording)
    assert bundled.commits == original.commits
    assert bundled.listed == original.listed
    for commit in original.listed:
        assert bundled.list_files(commit) == original.list_files(commit)


def test_the_bundled_history_agrees_with_its_listings() -> None:
    history = read_bundled("a test")
    assert len(history.commits) > FEWEST_COMMITS
    assert len(history.listed) > 5
    for commit in history.listed:
        assert fold(history.commits, through=commit) == history.list_files(commit)
    kinds = {change.kind for commit in history.commits for change in commit.changes}
    assert kinds >= {"A", "M", "D"}


@needs_git
def test_without_a_checkout_the_bundled_history_says_why(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    found = find_history(limit=100, root=outside)
    assert "git says" in found.source
    git(outside, "init", "-q")
    commit_all(outside, "only one")
    assert "no more than 1 commits" in find_history(limit=100, root=outside).source
    (outside / "inner").mkdir()
    found = find_history(limit=100, root=outside / "inner")
    assert "belongs to another repository" in found.source
    assert found.commits == read_bundled("").commits


def test_without_git_the_bundled_history_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git is not installed" in find_history(limit=100, root=tmp_path).source


@pytest.mark.parametrize(("count", "chosen"), [(1, "d"), (2, "bd"), (3, "abd"), (9, "abcd")])
def test_commits_to_compare_are_spread_and_end_with_the_newest(count: int, chosen: str) -> None:
    empty = History("", (), (), dict[str, Listing]().__getitem__, "")
    assert choose_listed(replace(empty, listed=tuple("abcd")), count) == list(chosen)
