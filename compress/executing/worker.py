"""The program of a worker: ``python -P -m compress.executing.worker SETUP CORES``.

Jobs come in over stdin, what is said goes out over stdout; what user code prints goes to stderr. It ends when its
stdin does, which is when the driver ends, however that happens.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from pathlib import Path
from typing import IO, Any

from compress.executing.messages import read_message, write_message


def main() -> None:
    """Make ready, then carry out trial after trial."""
    setup_file, cores = Path(sys.argv[1]), sys.argv[2]
    requests, answers = _own_pipes()
    jobs: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(requests, jobs), daemon=True, name="listening").start()
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    writing = threading.Lock()

    def say(kind: str, content: Any = None) -> None:
        with writing:
            write_message(answers, (kind, content))

    try:
        _work(setup_file, jobs, say)
    except BrokenPipeError:
        os._exit(1)


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes to the driver; user code that reads or prints has others in their place."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, answers


def _listen(requests: IO[bytes], jobs: queue.Queue[Any]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            jobs.put(read_message(requests))
    # Processes that this one has started notice that it is gone, and end as well.
    os._exit(0)


def _work(setup_file: Path, jobs: queue.Queue[Any], say: Any) -> None:
    from compress.executing.evaluating import evaluate_job
    from compress.executing.worker_setups import opened_context, unpickled
    from compress.onnx_files.isolation import kept_worker
    from compress.sampling.problems import problem_of
    from compress.tasks.user_code import describe
    from targets.errors import CompressError

    with contextlib.ExitStack() as opened:
        try:
            setup = unpickled(setup_file.read_bytes())
            opened.enter_context(kept_worker())
            context = opened.enter_context(
                opened_context(
                    setup, lambda event: say("event", event), lambda name: say("stage", f"preparing: {name}")
                )
            )
        except (Exception, SystemExit) as error:
            say("unready", str(error) if isinstance(error, CompressError) else describe(error))
            return
        constraints = problem_of(context.run).constraints
        say("ready")
        while True:
            job = jobs.get()
            say("done", evaluate_job(context, constraints, job, lambda name: say("stage", name)))


if __name__ == "__main__":
    main()
