"""Runs scripts as Dask tasks: in this process's own threads, or on the workers of a cluster that is
already up.

Each task is one script, run as a process of its own. Tasks that need others wait for them; one that
fails does not stop the others. A worker that is lost has its task run by another one, where a
script with --resume goes on from its checkpoint, provided that all see the same folders. No process
outlives the worker or the command that it belongs to.
"""

import contextlib
import json
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Scheduler, SpecCluster, Worker, as_completed, get_worker
from distributed.worker import thread_state

from figures.cli import ROOT, OptionalCount, RunError
from figures.run import write_json

RECORD, LOG = "step.json", "log.txt"
CHILD = (sys.executable, str(Path(__file__).with_name("child.py")))
# Dask's nannies set each to 1.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TIMEOUT = 10  # seconds to find the scheduler
PATIENCE = 5  # seconds without a worker before that is said
CHILDREN: set[subprocess.Popen] = set()  # of this process
SERVERS = threading.local()  # one for each thread, of figures/child.py
# What scripts import, and torch's compiler, which Adam's first step imports: 3 to 10 seconds.
IMPORTED = ("torch", "torch._dynamo", "torchvision.utils", "scipy.optimize", "scipy.stats")
IMPORTED += ("matplotlib.pyplot", "tyro", "tqdm", "filelock")


@dataclass(frozen=True)
class ClusterOptions:
    jobs: OptionalCount = None
    """scripts run at a time on this machine, which share its cores; None: one, or in the quick run
    as many as there are cores, four at most
    """
    threads: OptionalCount = None
    """threads of each script; None: the cores over --jobs, or over a Dask worker's --nthreads"""
    scheduler: str | None = None
    """address (tcp://host:8786) or scheduler file of a Dask cluster to run on; None: this machine
    """
    resource: str | None = None
    """what a script takes one of from its worker, such as GPU of `dask worker --resources GPU=1`"""


@dataclass(frozen=True)
class Task:
    """A script with its arguments, run in the repository; its record and log go to `folder`."""

    name: str
    command: tuple[str, ...]
    folder: Path
    needs: tuple[str, ...] = ()  # names of tasks that have to succeed first
    template: str | None = None  # for the record, instead of the command
    threads: int | None = None
    # Printed at the start of a script that has the terminal to itself; None: it writes a log.
    title: str | None = None


Ended = tuple[str, str | None]  # a task's name, and why it failed or could not begin


def cores() -> int:
    """Cores that this process may use; where the system does not say, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def record(folder: Path) -> dict[str, Any]:
    """Of a folder's last run: `command`, `session`, `begun`, all `seconds`, `finished`; or {}."""
    try:
        entry = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return entry if isinstance(entry, dict) else {}


def run_task(
    task: Task, session: str, before: Sequence[Ended], after: Ended | None = None
) -> Ended:
    """Run the script; returns the task's name, and why it failed or could not begin, or None.

    session: of `run_tasks`. Dask runs a task again if the worker is lost that had its result,
    though not its files.
    before: what this returned for the tasks that are needed. after: of one that only comes first.
    """
    entry: dict[str, Any] = record(task.folder)
    if entry.get("session") == session and entry["finished"]:
        return task.name, None
    if lost := [name for name, reason in before if reason]:
        return task.name, f"goes on from {lost[0]}"
    worker, key = get_worker(), thread_state.key
    threads = str(task.threads or max(1, cores() // worker.state.nthreads))
    entry |= {"command": task.template or shlex.join(task.command), "session": session}
    entry |= {"begun": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "finished": False}
    entry.setdefault("seconds", 0.0)
    write_json(task.folder / RECORD, entry)
    start = time.perf_counter()
    log = task.folder / LOG if task.title is None else None
    said_before = log.stat().st_size if log is not None and log.exists() else 0
    if log is None:
        print(task.title, flush=True)
    words = [str(ROOT / task.command[0]), *task.command[1:]]
    environment = os.environ | dict.fromkeys(THREADS, threads)
    script = begin(words, log, environment)
    while (code := script.poll()) is None:
        time.sleep(0.1)
        # Released when the command that submitted it is gone.
        ours = worker.state.tasks.get(key)
        if ours is None or ours.state == "cancelled":
            stop(script.process)
    seconds = round(entry["seconds"] + time.perf_counter() - start, 3)
    entry |= {"seconds": seconds, "finished": code == 0}
    write_json(task.folder / RECORD, entry)
    return task.name, f"exit code {code}{last_words(task, said_before)}" if code else None


class Alone:
    """A script run by an interpreter of its own."""

    def __init__(self, words: Sequence[str], log: Path | None, environment: Mapping[str, str]):
        with contextlib.ExitStack() as stack:
            out = None if log is None else stack.enter_context(log.open("ab"))
            error = None if log is None else subprocess.STDOUT
            streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": out, "stderr": error}
            self.process = subprocess.Popen([*CHILD, *words], **streams, env=environment)
        CHILDREN.add(self.process)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.process.poll() is not None:
            CHILDREN.discard(self.process)
        return self.process.returncode


class Server:
    """A process that has imported what scripts need, and forks one at a time."""

    def __init__(self, environment: Mapping[str, str]):
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        self.answers = os.fdopen(ours, "rb", buffering=0)
        command, pipe = [*CHILD, str(theirs), *IMPORTED], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, pass_fds=(theirs,), env=environment)
        os.close(theirs)
        CHILDREN.add(self.process)

    def begin(self, words: Sequence[str], log: Path | None) -> None:
        """Run a script."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([words, log and str(log)]).encode() + b"\n")
        self.process.stdin.flush()

    def poll(self) -> int | None:
        """The exit code of the script, or None while it runs."""
        answer = self.answers.read(64)
        if answer == b"":  # the server was killed, and its script is to end, too
            stop(self.process)
        return None if answer is None else int(answer or self.process.returncode or 1)


def begin(words: Sequence[str], log: Path | None, environment: Mapping[str, str]) -> Alone | Server:
    """Run a script: on this machine as a fork of this thread's server.

    Not on a cluster, where tasks of many commands share a worker, nor on other systems than Linux,
    which cannot fork a process that has imported torch.
    """
    if sys.platform != "linux" or not get_worker().address.startswith("inproc"):
        return Alone(words, log, environment)
    server = getattr(SERVERS, "own", None)
    if server is None or server.process not in CHILDREN or server.process.poll() is not None:
        server = SERVERS.own = Server(environment)
    server.begin(words, log)
    return server


def last_words(task: Task, start: int) -> str:
    """The last line of a task's log since it had `start` bytes, to stand behind its exit code."""
    if task.title is not None:
        return ""
    said = (task.folder / LOG).read_bytes()[start:].decode(errors="replace")
    lines = said.replace("\r", "\n").split("\n")
    return ": " + next((line for line in reversed(lines) if line.strip()), "it said nothing")


def stop(child: subprocess.Popen) -> None:
    """End a script and wait for it."""
    if child.stdin is not None:
        child.stdin.close()
    try:
        child.wait(30)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    CHILDREN.discard(child)


def stop_children() -> None:
    """End all scripts of this process."""
    for child in list(CHILDREN):
        stop(child)


class Portless:
    """Without the web server that Dask opens a port for even within a process."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        pass


class PortlessScheduler(Portless, Scheduler):
    pass


class PortlessWorker(Portless, Worker):
    pass


@contextlib.contextmanager
def connected(options: ClusterOptions) -> Generator[Client]:
    """A client of the cluster that the options name, or of one in this process, which opens no
    ports.

    Raises RunError if there is no scheduler where the options say.
    """
    if options.scheduler is None:
        jobs = options.jobs or 1
        # No limit of memory, as it only starts scripts, which the system looks after.
        settings = {"nthreads": jobs, "memory_limit": 0}
        settings["resources"] = {options.resource: jobs} if options.resource else {}
        workers = {0: {"cls": PortlessWorker, "options": settings}}
        local = {"protocol": "inproc://", "dashboard": False}
        scheduler = {"cls": PortlessScheduler, "options": local}
        # Tasks wait with the scheduler, by priority, and not with the worker, in the order in which
        # they became ready.
        with (
            dask.config.set({"distributed.scheduler.worker-saturation": 1.0}),
            SpecCluster(workers, scheduler, silence_logs=logging.ERROR) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    kind = "address" if "://" in options.scheduler else "scheduler_file"
    if kind == "scheduler_file" and not Path(options.scheduler).is_file():
        said = f"{options.scheduler!r} is no file, nor an address such as tcp://host:8786"
        raise RunError(f"--scheduler: {said}")
    try:
        client = Client(**{kind: options.scheduler}, timeout=TIMEOUT)
    except (OSError, ValueError) as error:
        raise RunError(f"no Dask scheduler at {options.scheduler}: {error}") from error
    with client:
        yield client


def say_if_nobody_comes(client: Client, resource: str | None) -> None:
    """One line if after some seconds no worker can take a task."""

    def able() -> bool:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        return any(resource is None or resource in worker["resources"] for worker in workers)

    deadline = time.monotonic() + PATIENCE
    while not able():
        if time.monotonic() > deadline:
            kind = "" if resource is None else f" with the resource {resource}"
            print(f"no worker{kind} yet: tasks wait until one comes", file=sys.stderr)
            return
        time.sleep(0.2)


def run_tasks(
    tasks: Sequence[Task], options: ClusterOptions, ended: Callable[..., None] = lambda *_: None
) -> dict[str, str]:
    """Run all tasks, in their order where there is a choice; returns why, of each that failed or
    could not begin.

    ended: called with the name of each task that has ended, and why it failed, or None.
    """
    if not tasks:
        return {}
    failed: dict[str, str] = {}
    with connected(options) as client:
        futures: dict[str, Any] = {}
        resources = {options.resource: 1} if options.resource else None
        session, last = uuid.uuid4().hex[:8], None
        for i, task in enumerate(tasks):
            before = [futures[name] for name in task.needs if name in futures]
            key = f"{task.name}-{session}"
            task = replace(task, threads=options.threads)
            how = {"key": key, "priority": -i, "resources": resources}
            last = client.submit(run_task, task, session, before, last, **how)
            futures[task.name] = last
            if options.scheduler is not None or (options.jobs or 1) > 1:
                last = None  # only one at a time has to keep the order where there is a choice
        names = {future.key: name for name, future in futures.items()}
        if options.scheduler is not None:
            print(f"dashboard: {client.dashboard_link}; each task's log: {LOG} in its folder")
            say_if_nobody_comes(client, options.resource)
        try:
            for future in as_completed(futures.values()):
                error = future.exception()
                reason = f"lost: {error}" if error is not None else future.result()[1]
                if reason is not None:
                    failed[names[future.key]] = reason
                ended(names[future.key], reason)
        except BaseException:
            for future in futures.values():
                future.cancel()
            client.run(stop_children)
            raise
        finally:
            if options.scheduler is None:
                stop_children()  # the servers
    return {task.name: failed[task.name] for task in tasks if task.name in failed}
