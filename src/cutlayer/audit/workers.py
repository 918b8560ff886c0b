"""Jobs in processes of their own, a few at a time.

A worker that dies (out of memory, most likely) costs the cells it had not finished, which are then reported as failed.
Stopping the parent stops the workers at once, and what they wrote stays.
"""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, NamedTuple

from cutlayer.audit.request import Event, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.context import SpawnProcess

    from cutlayer.audit.grid import Cell


class _Worker(NamedTuple):
    process: SpawnProcess
    unfinished: dict[str, Cell]


def run_jobs(jobs: Sequence[Job], processes: int, emit: Callable[[Event], None]) -> None:
    """Run every job; in this process if one at a time is asked for.

    Args:
        jobs: one per cut.
        processes: at most so many at once.
        emit: told of every cell, in this process.
    """
    if processes == 1 or len(jobs) == 1:
        for job in jobs:
            _run(job, emit)
        return
    waiting = list(jobs)
    running: dict[Connection, _Worker] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                _start(waiting.pop(0), running)
            for ready in wait(list(running)):
                if isinstance(ready, Connection):
                    _hear(ready, running, emit)
    finally:
        for worker in running.values():
            worker.process.terminate()
        for worker in running.values():
            worker.process.join()


def _start(job: Job, running: dict[Connection, _Worker]) -> None:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender), daemon=True)
    process.start()
    sender.close()  # so that the worker's end is the only one, and its death is heard
    cells = (*(config.cell for config in job.cells), *job.amend)
    running[receiver] = _Worker(process, {cell.key: cell for cell in cells})


def _hear(receiver: Connection, running: dict[Connection, _Worker], emit: Callable[[Event], None]) -> None:
    worker = running[receiver]
    try:
        event: Event = receiver.recv()
    except EOFError:
        del running[receiver]
        receiver.close()
        worker.process.join()
        for cell in worker.unfinished.values():
            reason = (
                f"its process ended with code {worker.process.exitcode}; -9 is mostly a lack of memory: try --jobs 1"
            )
            emit(Event("failed", cell, detail=reason))
        return
    if event.kind != "share":
        worker.unfinished.pop(event.cell.key, None)
    emit(event)


def _work(job: Job, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends this process
    _run(job, sender.send)
    sender.close()


def _run(job: Job, emit: Callable[[Event], None]) -> None:
    import torch

    from cutlayer.audit.measure import CutRun

    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        CutRun(job, emit).run()
    finally:
        torch.set_num_threads(before)
