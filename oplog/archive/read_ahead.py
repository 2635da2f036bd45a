"""Objects fetched by a few threads before they are asked for, and handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def read_ahead(
    jobs: Iterable[_Job],
    work: Callable[[_Job], _Result],
    *,
    threads: int,
    ahead: int | None = None,
    most_bytes: int | None = None,
    measure: Callable[[_Job], int] = lambda _: 0,
) -> Iterator[tuple[_Job, _Result]]:
    """Each job with what `work` makes of it, in the order of `jobs`.

    `work` runs in `threads`, for the job that is handed out next and at most `ahead` after it
    (as many as there are threads, if it is left out). With `most_bytes`, a job is begun only
    while it and those before it, the one in the caller's hands included, are no larger together,
    by what `measure` says of each; one job is always under way. `jobs` itself is iterated by the
    caller's thread. What `work` raises for a job is raised in its place.
    """
    most_jobs = 1 + (threads if ahead is None else ahead)
    source = iter(jobs)
    following = next(source, None)
    waiting: deque[tuple[_Job, int, Future[_Result]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="oplog-read-ahead")
    try:
        while following is not None or waiting:
            while following is not None and len(waiting) < most_jobs:
                size = measure(following)
                if waiting and most_bytes is not None and held + size > most_bytes:
                    break
                waiting.append((following, size, pool.submit(work, following)))
                held += size
                following = next(source, None)
            job, size, coming = waiting.popleft()
            yield job, coming.result()
            held -= size
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
