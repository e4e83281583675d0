"""What every script does around its experiment: pick a device, keep stages and results, print
tables.

Here and in the scripts, what takes a second to import, such as matplotlib, is imported where it is
used: --help and errors come at once.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import filelock
import torch
from tabulate import tabulate

from data import write_aside
from figures.cli import AT_END, ROOT, RunError, Terminated

LIBRARIES = ("torch", "numpy", "scipy", "matplotlib", "tyro")


def _commit() -> str | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        done = subprocess.run(command, capture_output=True, check=True)
        return os.fsdecode(done.stdout).strip()

    try:
        if not Path(git("rev-parse", "--show-toplevel")).samefile(ROOT):
            return None  # a copy without its history, inside another repository
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None


COMMIT = _commit()  # at start: a long run may outlive the checkout it began in


def pick_device(name: str | None) -> torch.device:
    """The device called `name`; without a name the accelerator if there is one, else the CPU.

    Apple's MPS is never picked by default: it has no float64. Raises RunError for no such device.
    """
    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None or found.type == "mps" else found
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # some exist and cannot compute, such as meta
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RunError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


LOCKS: dict[Path, filelock.BaseFileLock] = {}  # held by this process


def release() -> None:
    """Leave the folders to others."""
    for path, lock in LOCKS.items():
        path.with_name(".owner").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        lock.release()
    LOCKS.clear()


def claim(folder: Path) -> None:
    """Keep other processes from running in this folder until this one ends, however it ends.

    Raises RunError, which says who has it, if another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / ".lock"
    if path in LOCKS:
        return
    lock = filelock.FileLock(path)
    owner = path.with_name(".owner")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise RunError(f"{folder} is in use by {who}; choose another --out") from error
    LOCKS[path] = lock
    if release not in AT_END:
        AT_END.append(release)
    for part in folder.glob(".*.part"):  # of a killed process, as nobody else writes here now
        part.unlink(missing_ok=True)
    who = f"process {os.getpid()} on {platform.node()}"
    write_aside(owner, who.encode())


def refuse(options: Any, path: Path) -> None:
    """Raise RunError if `path` is of a run that is not to be resumed."""
    if path.exists() and not options.resume:
        said = "already holds a run: go on with --resume, or choose another --out"
        raise RunError(f"{options.out} {said}")


def begin(options: Any) -> tuple[torch.device, Path]:
    """Device and checkpoint of a run in --out that may begin or, with --resume, go on.

    Raises RunError for no such device, and if --out holds a run that is not to be resumed.
    """
    device = pick_device(options.device)
    torch.set_flush_denormal(True)  # denormal numbers are slow
    claim(options.out)
    checkpoint = options.out / "checkpoint.pt"
    refuse(options, checkpoint)
    return device, checkpoint


@contextlib.contextmanager
def saving_at_sigterm() -> Generator[Callable[[], bool]]:
    """Inside, SIGTERM, with which batch systems announce the end, waits: a training asks what is
    yielded after each step, saves, and leaves; then Terminated is raised.
    """
    if threading.current_thread() is not threading.main_thread():  # where there are no signals
        yield lambda: False
        return
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        yield lambda: bool(told)
    finally:
        signal.signal(signal.SIGTERM, before)
    if told:
        raise Terminated


def native_precision(device: torch.device) -> str:
    """bfloat16 on a CPU with instructions for it that torch is to use, else float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    used = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "bfloat16" if used and capabilities.get("avx512_bf16") else "float32"


def precise(options: Any, device: torch.device) -> Any:
    """The options with --precision named, native where it was not, and torch told of it: by itself
    it rounds convolutions on NVIDIA's GPUs to TF32.

    Raises RunError for TF32 elsewhere.
    """
    precision = options.precision or native_precision(device)
    if precision == "tf32" and device.type != "cuda":
        raise RunError(f"--precision tf32 is for NVIDIA's GPUs, not for {device.type}")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return dataclasses.replace(options, precision=precision)


@contextlib.contextmanager
def products_in(precision: str) -> Generator[None]:
    """Let torch's float32 matrix products round their factors to `precision`."""
    before = torch.get_float32_matmul_precision()
    rounding = {"bfloat16": "medium", "tf32": "high"}
    torch.set_float32_matmul_precision(rounding.get(precision, "highest"))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def write_json(path: Path, value: object) -> None:
    """Write JSON aside, then rename. NaN and infinities raise ValueError: they are not results."""
    write_aside(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def save_torch(path: Path, value: object) -> None:
    """torch.save aside, then rename."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_aside(path, buffer.getbuffer())


def state_of(part: Any) -> Any:
    """What a checkpoint holds of a module, optimiser, generator, dict of such, or anything else."""
    if hasattr(part, "state_dict"):
        return part.state_dict()
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, dict):
        return {key: state_of(value) for key, value in part.items()}
    return part


def save_trainer(path: Path, trainer: Any, **more: Any) -> None:
    """Write a checkpoint: the options, what is in trainer.KEPT, and more."""
    state = {name: state_of(getattr(trainer, name)) for name in trainer.KEPT}
    save_torch(path, {"config": as_config(trainer.options), **state, **more})


def restore(trainer: Any, state: Mapping[str, Any]) -> None:
    """Give a trainer back what `save_trainer` wrote."""

    def restored(part: Any, value: Any) -> Any:
        if hasattr(part, "load_state_dict"):
            part.load_state_dict(value)
        elif isinstance(part, torch.Generator):
            part.set_state(value)
        elif isinstance(part, dict):
            return {key: restored(part.get(key), value[key]) for key in {**part, **value}}
        else:
            return value.to(trainer.device) if torch.is_tensor(value) else value
        return part

    for name in trainer.KEPT:
        setattr(trainer, name, restored(getattr(trainer, name), state[name]))


def check_finite(values: Mapping[str, float | None], where: str) -> None:
    """Raise FloatingPointError, one line, for the first of the values that is not finite."""
    for key, value in values.items():
        if value is not None and not math.isfinite(value):
            raise FloatingPointError(f"the {key} is {value} {where}; try a smaller learning rate")


HISTORY = "history.jsonl"


def note(folder: Path, **values: Any) -> None:
    """Add a line to folder/history.jsonl, with which a long run can be watched."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def take_back(folder: Path, key: str, last: int) -> None:
    """Leave out of folder/history.jsonl what a run will say again that goes on from `last`, and a
    line that a killed one did not end.
    """
    path = folder / HISTORY
    if path.exists():
        kept = ""
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                kept += line if json.loads(line)[key] <= last else ""
        write_aside(path, kept.encode())


@contextlib.contextmanager
def reading(path: Path, what: str) -> Generator[Any]:
    """What `save_torch` wrote at `path`, to be used inside. Raises RunError, one line, if it is
    missing, or if reading or using it fails, as it then is something else.
    """
    if not path.is_file():
        raise RunError(f"no {what} at {path}")
    try:
        yield torch.load(path, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except Exception as error:  # torch raises anything from KeyError to UnpicklingError here
        raise RunError(f"{path} is no {what}") from error


def as_config(options: Any) -> dict[str, Any]:
    """The options as JSON holds them."""
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))


def same_options(path: Path, before: Mapping, now: Mapping, free: Collection[str]) -> None:
    """Raise RunError if what is at `path` was made with other options, but for the `free` ones."""
    for key in sorted((before.keys() | now.keys()) - set(free)):
        if before.get(key) != now.get(key):
            name = key if key == "documents" else f"--{key.replace('_', '-')}"
            had = f"{before.get(key)}, not {now.get(key)}"
            if key not in now:
                raise RunError(f"--resume: {path} is of an earlier version, which had {name}")
            raise RunError(f"--resume: {path} was trained with {name} {had}")


def keep(path: Path, options: Any, free: Collection[str], make: Callable[[], dict], **same) -> dict:
    """What `make` returns, with the `seconds` it took, kept at `path`; with --resume, what is there
    already.

    same: what else must not have changed. Raises RunError if something is there and is not to be,
    or cannot be, taken.
    """
    config = as_config(options) | same
    claim(options.out)
    refuse(options, path)
    if path.exists():
        with reading(path, "finished stage") as state:
            same_options(path, state["config"], config, free)
            return state
    start = time.perf_counter()
    state = {**make(), "config": config}
    state["seconds"] = time.perf_counter() - start
    save_torch(path, state)
    return state


def save_result(
    options: Any, device: torch.device, seconds: float, metrics: Mapping, history: Mapping, **more
) -> dict[str, Any]:
    """Write `result.json` in --out and return what it holds.

    seconds: wall time of the work behind the metrics. metrics: numbers that the same seed on the
    same machine repeats bit by bit. history: what the curves are drawn from.
    """
    result: dict[str, Any] = {"config": as_config(options), "metrics": metrics}
    result |= {"environment": environment(device), "seconds": round(seconds, 3)}
    result |= {"history": history} | more
    write_json(options.out / "result.json", result)
    return result


def environment(device: torch.device) -> dict[str, Any]:
    """Versions of libraries, processor, device, threads, and the commit ("+": with changes)."""
    processor = platform.processor() or "unknown"
    with contextlib.suppress(OSError):  # of Linux
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        names = [line for line in text.splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    project = None
    with contextlib.suppress(PackageNotFoundError):  # a copy that was not installed
        project = version("vae-approximation-error")
    return {
        "project": project,
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "commit": COMMIT,
    }


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95% t-interval of the mean."""
    import scipy.stats

    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean and 95% t-interval, such as 6.6 ± 0.8."""
    return f"{statistics.mean(values):z,.{digits}f} ± {half_width(values):,.{digits}f}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]], digits: int = 4) -> None:
    """Print aligned columns; a float is shown with `digits` digits, None as a dash."""
    cells = [[f"{v:z.{digits}f}" if isinstance(v, float) else v for v in row] for row in rows]
    align = ["left", *["right"] * (len(header) - 1)]
    form: dict[str, Any] = {"colalign": align, "missingval": "-", "disable_numparse": True}
    print(f"\n{tabulate(cells, header, **form)}")


def print_closing(result: Mapping[str, Any]) -> None:
    """The last line of a run."""
    device, out = result["environment"]["device"], result["config"]["out"]
    print(f"{result['seconds']:.0f} s on {device}; result and figures in {out}")
