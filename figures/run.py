"""What every script does around its experiment: read options, fail in one line, keep results, print tables."""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
import tyro

from data import DataError, write_aside

LIBRARIES = ("torch", "numpy", "scipy", "matplotlib", "tyro")


ROOT = Path(__file__).parent.parent


def _commit() -> str | None:
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


COMMIT = _commit()  # at start: a long run may outlive the checkout it began in


class RunError(Exception):
    """The run cannot start or go on; the message is one line that says why and what to do."""


class Terminated(BaseException):
    """SIGTERM, as `kill`, `timeout` and batch systems send it, made an exception: what was started can be stopped."""


def _terminate(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would disturb the tidying up
    raise Terminated


def cli(
    options_type: type,
    experiment: Callable[[Any], None],
    description: str,
    presets: Mapping[str, tuple[Any, str]] | None = None,
    **commands: tuple[type, Callable[[Any], None]],
) -> None:
    """Read the options from the command line and run the experiment; anything foreseeable fails in one line.

    options_type: a dataclass, with GROUPS, the titles under which --help lists its options and their names, and
        EXAMPLES, pairs of arguments and what they do.
    presets: named options and a word on each; `--preset NAME` starts from them, and other options change them.
    commands: further experiments of the script, run when its first argument is their name. What they do is the first
        line of the function's docstring.
    Exit codes: 0 done, 1 failed or nobody reads the output, 2 bad options, 130 interrupted, 143 terminated.
    """
    path, arguments, options = Path(sys.argv[0]).absolute(), sys.argv[1:], None
    script = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name

    def fail(message: object, code: int) -> NoReturn:
        print(f"{script}: {' '.join(str(message).split())}", file=sys.stderr)
        sys.exit(code)

    each, default = [], tyro.MISSING_NONPROP
    if arguments and arguments[0] in commands:
        script, arguments = f"{script} {arguments[0]}", arguments[1:]
        options_type, experiment = commands[sys.argv[1]]
        description = experiment.__doc__.splitlines()[0]
    else:
        each = [(f"{script} {name}", run.__doc__.splitlines()[0]) for name, (_, run) in commands.items()]
        if presets:
            reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
            reader.add_argument("--preset", nargs="?", const="")
            chosen, arguments = reader.parse_known_args(arguments)
            each = [(f"--preset {name}", word) for name, (_, word) in presets.items()] + each
            if chosen.preset is not None:
                if chosen.preset not in presets:
                    fail(f"--preset {chosen.preset or '(no name)'}: there are {', '.join(presets)} (see --help)", 2)
                default = presets[chosen.preset][0]

    asked, hint = {"-h", "--help"} & set(arguments), ""
    said, complained = io.StringIO(), io.StringIO()
    try:
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
                options = tyro.cli(
                    options_type,
                    prog=script,
                    args=["--help"] if asked else arguments,  # which tyro else explains without the options given
                    default=default,
                    config=(tyro.conf.FlagCreatePairsOff,),
                )
        except SystemExit as stop:
            if not stop.code:
                text = said.getvalue()  # the help or, if another option of tyro's asked for them, a shell's completions
                print(_help(script, description, text, each, options_type) if asked else text, flush=True)
                return
            # tyro frames its message, in ASCII where the terminal is: a title, then the message between two rules.
            lines = [line.strip("│| ") for line in complained.getvalue().splitlines()[1:]]
            is_rule = [bool(line) and set(line) <= set("─╰╯-+") for line in lines]
            start = int(is_rule[:1] == [True])
            end = is_rule.index(True, start) if True in is_rule[start:] else len(lines)
            fail(f"{' '.join(lines[start:end])} (see --help)", 2)
        hint = "; go on from what was saved with --resume" if hasattr(options, "resume") else ""
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            experiment(options)
        finally:
            signal.signal(signal.SIGTERM, before)
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail(f"interrupted{hint}", 130)
    except Terminated:
        fail(f"terminated{hint}", 143)
    except BrokenPipeError:  # as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left unsaid goes there at exit
        sys.exit(1)
    except (
        RunError,
        DataError,
        OSError,
        FloatingPointError,
    ) as error:  # others are bugs: traceback
        fail(error, 1)


def _help(script: str, description: str, framed: str, each: Sequence[tuple[str, str]], options_type: Any) -> str:
    """What --help prints, made of what tyro says of each option: a sentence, options in groups, examples."""
    entries: dict[str, tuple[str, str]] = {}  # by option; arguments without one under ""
    name = ""
    for line in framed.splitlines():
        if re.match(r"  [-\[]", line):
            call, _, text = line.strip().partition("  ")
            name = call.split()[0] if call[0] == "-" else ""
            call = re.sub(r"\[+(\S+) \[\1 \.\.\.\]+", r"\1 ...", re.sub(r"\{None\}\||None,", "", call))
            entries[name] = (call, text)
        elif name in entries and line.startswith("    "):
            entries[name] = (entries[name][0], f"{entries[name][1]} {line.strip()}")
    width = min(shutil.get_terminal_size().columns, 110)

    def wrapped(text: str, indent: str = "") -> list[str]:
        return textwrap.wrap(text, width - 1, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)

    def section(title: str, rows: Sequence[tuple[str, str]]) -> list[str]:
        lines, column = ["", f"{title}:"], 30
        for left, right in rows:
            text = wrapped(" ".join(right.split()), column * " ")
            if len(left) + 4 <= column:
                text[0] = f"  {left}".ljust(column) + text[0].strip()
            else:
                lines.append(f"  {left}")
            lines += text
        return lines

    lines = [f"usage: {script} [OPTIONS]", "", *wrapped(description)]
    if each:
        lines += section("start from, or run", each)
    for title, names in options_type.GROUPS.items():
        rows = [entries.get(f"--{name}") or entries[""] for name in names.split()]
        lines += section(title, [(call, re.sub(r" *\(default: (None|False)?\)", "", text)) for call, text in rows])
    examples = [(f"{script} {call}".strip(), word) for call, word in options_type.EXAMPLES]
    return "\n".join(lines + section("examples", examples))


def pick_device(name: str | None) -> torch.device:
    """The device called `name`; without a name the accelerator if there is one, else the CPU.

    Apple's MPS is never picked by default: it has neither float64 nor sparse CSR. Raises RunError for no such device.
    """
    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None or found.type == "mps" else found
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RunError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


def begin(options: Any) -> tuple[torch.device, Path]:
    """Device and checkpoint of a run in --out that may begin or, with --resume, go on.

    Raises RunError for no such device, and if --out holds a run that is not to be resumed.
    """
    device = pick_device(options.device)
    torch.set_flush_denormal(True)  # denormal numbers are slow
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists() and not options.resume:
        raise RunError(f"{options.out} holds a run already: go on with --resume, or name another --out")
    return device, checkpoint


def native_precision(device: torch.device) -> str:
    """bfloat16 on a CPU with instructions for it, else float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bfloat16" if capabilities.get("avx512_bf16") else "float32"


def same_options(path: Path, before: Mapping, now: Mapping, free: Collection[str]) -> None:
    """Raise RunError if a result or checkpoint at `path` was made with other options, but for the `free` ones."""
    for key in sorted((before.keys() | now.keys()) - set(free)):
        if before.get(key) != now.get(key):
            name = key.replace("_", "-")
            raise RunError(f"--resume: {path} was trained with --{name} {before.get(key)}, not {now.get(key)}")


def write_json(path: Path, value: object) -> None:
    """Write JSON aside, then rename. NaN and infinities raise ValueError: they are not results."""
    write_aside(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def save_torch(path: Path, value: object) -> None:
    """torch.save aside, then rename."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_aside(path, buffer.getbuffer())


def load_torch(path: Path, what: str) -> Any:
    """What `save_torch` wrote. Raises RunError, one line, if it is missing or something else."""
    if not path.is_file():
        raise RunError(f"no {what} at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from KeyError to UnpicklingError here
        raise RunError(f"{path} is no {what}: {(str(error) or 'empty').splitlines()[0]}") from error


def as_config(options: object) -> dict[str, Any]:
    """The options as JSON holds them."""
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(options).items()
    }


def save_result(
    folder: Path, options: object, device: torch.device, seconds: float, metrics: Mapping, history: Mapping, **more: Any
) -> dict[str, Any]:
    """Write `result.json` in `folder` and return what it holds.

    metrics: numbers that the same seed on the same machine repeats bit by bit. history: what the curves are drawn from.
    seconds: wall time of the work behind the metrics.
    """
    result = {
        "config": as_config(options),
        "metrics": metrics,
        "environment": environment(device),
        "seconds": round(seconds, 3),
        "history": history,
    } | more
    write_json(folder / "result.json", result)
    return result


def environment(device: torch.device) -> dict[str, Any]:
    """Library versions, processor, device, threads, and the commit the code ran from ("+": with changes)."""
    return {
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "commit": COMMIT,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], digits: int = 4) -> str:
    """Columns of text aligned for the terminal; a float is shown with `digits` digits, None as a dash."""

    def cell(value: object) -> str:
        return (
            "-"
            if value is None
            else f"{round(value, digits) + 0.0:.{digits}f}"
            if isinstance(value, float)
            else str(value)
        )

    texts = [list(header), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(text[i]) for text in texts) for i in range(len(header))]
    lines = [
        "  ".join([text[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(text[1:], widths[1:], strict=True))])
        for text in texts
    ]
    return "\n".join(["", lines[0], "-" * len(lines[0]), *lines[1:]])
