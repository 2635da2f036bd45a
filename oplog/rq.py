"""RQ: a job's records have the metadata of the code that enqueued it, and the job's own id.

The metadata travels in the job's `meta`. So it is as true as the clients of Redis are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from rq.job import Job

from oplog.metadata_context import context, current_context

__all__ = ["ContextJob"]

_KEY = "oplog_context"


class ContextJob(Job):
    """A job that runs in the context it was enqueued in.

    Give it to both sides: `Queue(..., job_class=ContextJob)`, and
    `rq worker --job-class oplog.rq.ContextJob`. Records that the job or one of its callbacks writes
    then have the metadata that was in force where it was enqueued, and `job`, the job's id, and
    `task`, the name of its function. A retry is the same job.
    """

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> Job:
        """Make a job as `rq.job.Job.create` does; it keeps the metadata in force."""
        job = super().create(*args, **kwargs)
        job.meta[_KEY] = current_context()
        return job

    def perform(self) -> Any:
        """Run the function; returns its result."""
        with self._enter():
            return super().perform()

    def execute_success_callback(self, *args: Any, **kwargs: Any) -> None:
        """Run `on_success`."""
        with self._enter():
            super().execute_success_callback(*args, **kwargs)

    def execute_failure_callback(self, *args: Any, **kwargs: Any) -> None:
        """Run `on_failure`."""
        with self._enter():
            super().execute_failure_callback(*args, **kwargs)

    def execute_stopped_callback(self, *args: Any, **kwargs: Any) -> None:
        """Run `on_stopped`."""
        with self._enter():
            super().execute_stopped_callback(*args, **kwargs)

    def _enter(self) -> AbstractContextManager[None]:
        carried = self.meta.get(_KEY, {})
        return context(**{**carried, "job": self.id, "task": self.func_name})
