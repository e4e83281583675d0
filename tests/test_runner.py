"""figures/runner.py: scripts as Dask tasks, on this machine and on workers that are killed."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from toy import ROOT, SCRIPT, posix, task

from figures import runner
from figures.cli import RunError
from figures.runner import ClusterOptions, Task, connected, run_tasks


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(runner, "IMPORTED", ("json",))  # all that the toy needs
    return tmp_path


def runs(house: Path, name: str) -> int:
    path = house / "out" / name / "runs"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def wait_for(ready: object, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ready()


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_tasks_run_in_order_and_those_that_need_a_failed_one_do_not(house: Path) -> None:
    (house / "mood").write_text("fail")
    tasks = [
        task(house, "first"),
        task(house, "part/second", "fails", needs=("first",)),
        task(house, "third", needs=("part/second",)),
        task(house, "fourth"),
    ]
    ended, ports = [], []

    def at_end(name: str, reason: str | None) -> None:
        ended.append((name, reason))
        ports.extend(psutil.Process().net_connections("inet"))

    failed = run_tasks(tasks, ClusterOptions(jobs=2), at_end)
    assert ports == []
    expected = {"part/second": "exit code 3: the disk is full"}
    assert failed == expected | {"third": "goes on from part/second"}
    assert {name: runs(house, name) for name in ("first", "part/second", "third", "fourth")} == {
        **{"first": 1, "part/second": 1, "fourth": 1},
        "third": 0,
    }
    assert sorted(name for name, _ in ended) == sorted(t.name for t in tasks)
    entry = runner.record(house / "out/first")
    assert entry["finished"]
    assert entry["command"] == shlex.join(tasks[0].command)
    assert entry["seconds"] > 0
    assert not runner.record(house / "out/part/second")["finished"]
    assert runner.record(house / "out/nowhere") == {}
    (house / "script.py").write_text("raise SystemExit(4)")
    assert run_tasks(tasks[1:2], ClusterOptions()) == {
        "part/second": "exit code 4: it said nothing"
    }
    (house / "script.py").write_text(SCRIPT)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    result = json.loads((house / "out/first/result.json").read_bytes())
    assert result["threads"] == str(max(1, cores // 2))


def test_no_scheduler_is_one_line(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TIMEOUT", 1)
    with pytest.raises(RunError, match="no Dask scheduler at tcp://127"):
        run_tasks([task(house, "first")], ClusterOptions(scheduler="tcp://127.0.0.1:1"))


@pytest.mark.skipif(sys.platform != "linux", reason="where scripts are forks of a server")
def test_a_killed_server_ends_its_script_and_the_next_task_has_another(house: Path) -> None:
    (house / "mood").write_text("hang")
    tasks = [task(house, "first", "hangs"), task(house, "second")]
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_tasks, tasks, ClusterOptions())
        wait_for((house / "out/first/hanging").exists)
        script = psutil.Process(int((house / "out/first/pid").read_text(encoding="utf-8")))
        script.parent().kill()
        assert future.result(60) == {"first": "exit code -9: it said nothing"}
    wait_for(lambda: not is_running(script.pid), 30)
    assert runs(house, "second") == 1
    assert not runner.CHILDREN


DRIVER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from toy import task
from figures.cli import main
from figures import runner
from figures.runner import ClusterOptions, run_tasks
runner.IMPORTED = ()
house = Path({house!r})
tasks = [task(house, "first"), task(house, "second", "hangs")]
tasks.append(task(house, "third", needs=("second",)))
main("", ("drive", lambda options: print(run_tasks(tasks, options)), ClusterOptions(), ""))
"""


def driver(house: Path, *arguments: str) -> subprocess.Popen:
    program = DRIVER.format(root=str(ROOT), tests=str(ROOT / "tests"), house=str(house))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], start_new_session=True, cwd=house, **streams
    )


@posix
@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_stopped_command_leaves_no_process_and_only_what_is_missing_to_run(
    house: Path, stop: str
) -> None:
    (house / "mood").write_text("hang")
    child = driver(house)
    wait_for((house / "out/second/hanging").exists)
    time.sleep(0.2)
    pid = int((house / "out/second/pid").read_text(encoding="utf-8"))
    if stop == "SIGINT":
        os.killpg(child.pid, signal.SIGINT)  # as the terminal does
    else:
        child.send_signal(getattr(signal, stop))
    _, err = child.communicate(timeout=30)  # less than the script would sleep
    assert child.returncode == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}[stop], err
    assert "Traceback" not in err
    wait_for(lambda: not is_running(pid), 20)
    assert runner.record(house / "out/first")["finished"]
    assert not runner.record(house / "out/second")["finished"]
    assert runs(house, "third") == 0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[psutil.Process]]]:
    """A scheduler and two workers, as from the shell; the scheduler's file, and the nannies."""
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard", "--host", "127.0.0.1"]
    commands = [["scheduler", *common, "--port", "0"]]
    commands += [
        ["worker", *common, "--nthreads", "1", "--local-directory", str(tmp_path / str(i))]
        for i in (1, 2)
    ]
    children = []
    try:
        for command in commands:
            if children:
                wait_for(file.exists)
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]],
                    stdout=(tmp_path / f"dask{len(children)}.log").open("w"),
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
                    start_new_session=True,
                )
            )
        yield str(file), [psutil.Process(child.pid) for child in children[1:]]
    finally:
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@posix
@pytest.mark.slow
def test_a_lost_command_takes_its_script_along_on_the_cluster(house: Path, cluster: tuple) -> None:
    (house / "mood").write_text("hang")
    child = driver(house, "--scheduler", cluster[0])
    wait_for((house / "out/second/hanging").exists)
    time.sleep(0.2)
    pid = int((house / "out/second/pid").read_text(encoding="utf-8"))
    child.kill()
    child.wait()
    wait_for(lambda: not is_running(pid), 30)
    (house / "mood").unlink()
    tasks = [task(house, "second", "hangs"), task(house, "third", needs=("second",))]
    assert run_tasks(tasks, ClusterOptions(scheduler=cluster[0])) == {}
    assert (runs(house, "second"), runs(house, "third")) == (2, 1)


COUNTING = """
import os, sys, time
from pathlib import Path
out = Path(sys.argv[1])
state = out / "checkpoint"
count = int(state.read_text()) if state.exists() else 0
with (out / "starts").open("a") as file:
    print(count, file=file)
while count < 40:
    time.sleep(0.1)
    count += 1
    (out / "part").write_text(str(count))
    os.replace(out / "part", state)
print("done")
"""


def busy(nannies: list[psutil.Process]) -> list[psutil.Process]:
    """The workers that run a script."""
    with contextlib.suppress(psutil.NoSuchProcess):  # one ended meanwhile
        return [worker for nanny in nannies for worker in nanny.children() if worker.children()]
    return []


@posix
@pytest.mark.slow
def test_tasks_survive_lost_workers(house: Path, cluster: tuple[str, list[psutil.Process]]) -> None:
    """Three scripts; a worker is killed, and later its nanny with it: each goes on elsewhere."""
    (house / "count.py").write_text(COUNTING)
    folders = [house / str(i) for i in range(3)]
    tasks = [Task(f.name, (str(house / "count.py"), str(f)), f) for f in folders]
    file, nannies = cluster
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_tasks, tasks, ClusterOptions(scheduler=file, threads=1))
        wait_for(lambda: all((folder / "checkpoint").exists() for folder in folders[:2]))
        wait_for(lambda: busy(nannies))
        busy(nannies)[0].kill()
        wait_for((folders[2] / "checkpoint").exists)
        os.killpg(nannies[0].pid, signal.SIGKILL)
        assert future.result(300) == {}
    starts = [(folder / "starts").read_text(encoding="utf-8").split() for folder in folders]
    assert [of_one[0] for of_one in starts] == ["0"] * 3
    assert any(int(count) > 0 for of_one in starts for count in of_one[1:])
    for folder in folders:
        assert (folder / "checkpoint").read_text(encoding="utf-8") == "40"
        assert "done" in (folder / "log.txt").read_text(encoding="utf-8")


def test_a_worker_that_only_starts_scripts_has_no_memory_limit() -> None:
    """Above one, Dask would pause it without a word."""
    with connected(ClusterOptions(jobs=2)) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert [worker["memory_limit"] for worker in workers] == [0]


def test_wrong_schedulers_are_one_line(house: Path) -> None:
    for wrong in ("", str(house / "none.json")):
        with pytest.raises(RunError, match=r"--scheduler: .* is no file"):
            run_tasks([task(house, "first")], ClusterOptions(scheduler=wrong))


@posix
@pytest.mark.slow
def test_waiting_for_a_worker_is_said(
    house: Path, cluster: tuple, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0)
    options = ClusterOptions(scheduler=cluster[0], resource="GPU")
    with ThreadPoolExecutor(1) as pool, connected(options) as client:
        pool.submit(runner.say_if_nobody_comes, client, "GPU").result()
    assert "no worker with the resource GPU yet" in capsys.readouterr().err
