"""A job as commands run it: shown, shared by processes, and resumable when it is interrupted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from eventseal.cli.interruption import RUN_AGAIN, resumable
from eventseal.cli.options import opened_in_worker
from eventseal.cli.output import print_json
from eventseal.cli.progress import shown_progress
from eventseal.cli.worker_processes import worker_processes
from eventseal.rotation.jobs.jobs import MIGRATE, verb_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from eventseal.cli.options import Options
    from eventseal.rotation import JobResult


def shown_job(
    options: Options,
    name: str,
    verb: Callable[..., JobResult],
    *,
    workers: int,
    resume: UUID | None,
    function: str | None = None,
) -> JobResult:
    """
    Run a job, show how far it is, and if it is interrupted say how to go on.

    Args:
        options: Of the run.
        name: The command that goes on with it.
        verb: Of ``eventseal.rotation``, with the arguments that are its own.
        workers: Processes that share the work.
        resume: Only go on with this job.
        function: The function for key scopes, as the command line names it.

    Raises:
        VerbInterrupt: It was interrupted; the job resumes.
    """
    begun = _BegunJob(resume, name, function)
    with (
        resumable(begun.remedy),
        shown_progress(name, "items") as progress,
        worker_processes(1 if options.dry_run else workers, function=function) as executor,
    ):
        try:
            return verb(
                shards=workers,
                executor=executor,
                open_store=partial(opened_in_worker, options.config, event_modules=name == MIGRATE),
                resume=resume,
                dry_run=options.dry_run,
                progress=begun.noting(progress),
            )
        except KeyboardInterrupt:
            if options.as_json and begun.last is not None:
                print_json(begun.last.to_json())
            raise


class _BegunJob:
    """
    What is known of a job while it runs.

    Args:
        job_id: If it is resumed.
        verb: The command that goes on with it.
        function: The function for key scopes, which the command must name again.
    """

    def __init__(self, job_id: UUID | None, verb: str, function: str | None) -> None:
        self.last: JobResult | None = None
        self._job_id = job_id
        self._verb = verb
        self._function = function

    def noting(self, progress: Callable[[JobResult], None]) -> Callable[[JobResult], None]:
        """Give what notes a result, and shows it."""

        def note(result: JobResult) -> None:
            self.last = result
            self._job_id = result.job_id or self._job_id
            progress(result)

        return note

    def remedy(self) -> str:
        """Say how to go on."""
        if self._job_id is None:
            return RUN_AGAIN
        command = verb_command(self._verb, self._job_id, self._function)
        return f"What was done stays done. To go on: {command}"
