"""Where a job's processes run: in this one, in a pool on this machine, or on a Ray cluster.

All of them do the same work (`engine.work_on_all`) and agree by the files in the job's folder alone, so an executor
starts processes, follows the markers, and passes on the first error.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Literal

from imagegpt.common import ranges
from imagegpt.jobs.engine import Executor, Monitor, work_on_all
from imagegpt.jobs.plan import Job
from imagegpt.jobs.ranks import Ranks

ExecutorName = Literal["local", "ray"]

_POLL_S = 0.2
_RAY_RETRIES = 10  # of a task whose process or machine dies
_DIED = "{} died, perhaps for lack of memory: the same command continues where they stopped, try it with fewer workers"


class InProcess:
    """Does the jobs in the current process."""

    def run(self, jobs: Sequence[Job], ranks: Ranks, monitor: Monitor) -> None:
        """See `Executor`."""
        monitor.work_here(ranks)


class ProcessPool:
    """Processes on this machine. The others take over the shards of one that dies.

    Args:
        num_workers: how many.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers

    def run(self, jobs: Sequence[Job], ranks: Ranks, monitor: Monitor) -> None:
        """See `Executor`."""
        with self._started(jobs, ranks) as results:
            running, num_dead = list(results), 0
            while running:
                for ready in multiprocessing.connection.wait(running, _POLL_S):
                    assert isinstance(ready, Connection)
                    running.remove(ready)
                    try:
                        error = ready.recv()
                    except EOFError:
                        num_dead += 1
                    else:
                        if error is not None:
                            raise error
                monitor.poll()
            if num_dead == self.num_workers:
                raise ChildProcessError(_DIED.format(f"all {num_dead} worker processes"))

    @contextlib.contextmanager
    def _started(self, jobs: Sequence[Job], ranks: Ranks) -> Iterator[list[Connection]]:
        context = multiprocessing.get_context("spawn")  # threads of torch and pyarrow do not survive a fork
        processes, results = [], []
        try:
            for number in range(self.num_workers):
                receiving, sending = context.Pipe(duplex=False)
                arguments = (jobs, ranks.split(number, self.num_workers), sending)
                process = context.Process(target=_work_in_child, args=arguments, daemon=True)
                process.start()
                sending.close()  # so that the end of the process closes the pipe
                processes.append(process)
                results.append(receiving)
            yield results
        finally:
            for process in processes:
                process.terminate()  # safe at any moment, as a kill is
            for process in processes:
                process.join()


class RayExecutor:
    """Tasks on a Ray cluster: that of RAY_ADDRESS, or one that is started on this machine and stopped at the end.

    All machines must see the job's folder and its source under the same paths. Ray restarts a task whose process or
    machine dies; its shards are made by whichever task comes first.

    Args:
        num_workers: number of tasks.
    Raises: ValueError if Ray is not installed.
    """

    def __init__(self, num_workers: int) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports] - an optional extra
        except ImportError as error:
            raise ValueError("the executor 'ray' needs the library ray: pip install 'imagegpt[ray]'") from error
        self.num_workers, self._ray = num_workers, ray

    def run(self, jobs: Sequence[Job], ranks: Ranks, monitor: Monitor) -> None:
        """See `Executor`."""
        with self._connected():
            num_gpus = int(any(job.needs_gpu for job in jobs))
            task = self._ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=_RAY_RETRIES)(work_on_all)
            running = [task.remote(list(jobs), ranks.split(i, self.num_workers)) for i in range(self.num_workers)]
            try:
                while running:
                    ready, running = self._ray.wait(running, timeout=_POLL_S)
                    self._ray.get(ready)
                    monitor.poll()
            except self._ray.exceptions.RayTaskError as error:  # the job's own error is in it
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                raise ChildProcessError(_DIED.format("a Ray task")) from error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        if self._ray.is_initialized():
            yield
            return
        local: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": self.num_workers}
        self._ray.init(log_to_driver=False, include_dashboard=False, logging_level="error", **local)
        try:
            yield
        finally:
            self._ray.shutdown()


def choose_executor(name: str, num_workers: int) -> Executor:
    """The executor of this name with so many processes; one process on this machine is the current one.

    Raises: ValueError for other names, and if Ray is not installed.
    """
    num_workers = ranges.WORKERS.check("num_workers", num_workers)
    if name not in ("local", "ray"):
        raise ValueError(f"the executor is {name!r}: choose local or ray")
    if name == "ray":
        return RayExecutor(num_workers)
    return InProcess() if num_workers == 1 else ProcessPool(num_workers)


def _work_in_child(jobs: Sequence[Job], ranks: Ranks, result: Connection) -> None:
    """Do the jobs in a child process, and send the error that ended them, or None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent reports it
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        work_on_all(jobs, ranks)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        result.send(error)
    else:
        result.send(None)


def _exit_with_parent() -> None:
    """Exit when the parent has died, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in child processes only"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
