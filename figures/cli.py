"""Command lines: bounds of options, subcommands by tyro, one line for foreseeable errors."""

import io
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro

from data import DataError

ROOT = Path(__file__).parent.parent
AT_END: list[Callable[[], None]] = []  # called when a command line has ended, well or not


class RunError(Exception):
    """The run cannot start or go on; the message is one line that says why and what to do."""


class Terminated(BaseException):
    """SIGTERM, as `kill` and batch systems send it, made an exception: what runs can be stopped."""


def _bounded(kind: type, holds: Callable[[Any], bool], bound: str, optional: bool = False) -> Any:
    """How tyro reads a number for which `holds` is true; `bound` says which, in --help and in the
    error.

    optional: "None" is read, too.
    """

    def read(words: list[str]) -> Any:
        if optional and words == ["None"]:
            return None
        value = kind(words[0])
        if not holds(value):
            raise ValueError(f"must be {bound}, not {value}")
        return value

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}|" * optional + kind.__name__.upper() + bound,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, (int, kind)) or (optional and value is None),
        str_from_instance=lambda value: [str(value)],
    )


Natural = Annotated[int, _bounded(int, lambda x: x >= 0, ">=0")]
Count = Annotated[int, _bounded(int, lambda x: x >= 1, ">=1")]
Several = Annotated[int, _bounded(int, lambda x: x >= 2, ">=2")]
POSITIVE = float, lambda x: 0 < x < math.inf, ">0"
Positive = Annotated[float, _bounded(*POSITIVE)]
OptionalCount = Annotated[int | None, _bounded(int, lambda x: x >= 1, ">=1", optional=True)]
OptionalNatural = Annotated[int | None, _bounded(int, lambda x: x >= 0, ">=0", optional=True)]
OptionalPositive = Annotated[float | None, _bounded(*POSITIVE, optional=True)]
SHARE = float, lambda x: 0 <= x <= 1, ">=0,<=1"
OptionalShare = Annotated[float | None, _bounded(*SHARE, optional=True)]
Fraction = Annotated[float, _bounded(float, lambda x: 0 <= x < 1, ">=0,<1")]


Precision = Literal["float32", "tf32", "bfloat16"]
Run = tuple[str, Callable[[Any], None], Any, str]
LIKE = """
`--like RESULT.json` takes the options of a result instead, which others on the command line change,
and says at the end whether the metrics are equal."""


def read_options(
    description: str | None, runs: Sequence[Run], prog: str, args: Sequence[str] | None = None
) -> Any:
    """The options of one of the runs, from the command line or `args`. Raises SystemExit, as tyro
    does: 0 help, 2 bad.

    description: the script's docstring, which --help shows.
    runs: what the script can do, the default first: the subcommand's name, the function, its
        options, which other options on the command line change, and what --help says of it. One
        type of options belongs to one function.
    """
    default = runs[0][2]
    kinds = tyro.extras.subcommand_type_from_defaults(
        {name: options for name, _, options, _ in runs}, {name: words for name, _, _, words in runs}
    )
    return tyro.cli(
        kinds if len(runs) > 1 else type(default),
        prog=prog,
        description=description,
        args=args,
        default=default,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.CascadeSubcommandArgs),
    )


def main(description: str | None, *runs: Run) -> None:
    """Read the options, as `read_options` does, and run the function; anything foreseeable fails in
    one line.

    Exit codes: 0 done, 1 failed or nobody reads the output, 2 bad options, 130 interrupted, 143
    terminated.
    """
    path = Path(sys.argv[0]).absolute()
    script = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    hint = ""

    def fail(message: object, code: int) -> NoReturn:
        print(f"{script}: {' '.join(str(message).split())}", file=sys.stderr)
        sys.exit(code)

    def terminate(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would disturb the tidying up
        raise Terminated

    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        before_now, args = None, sys.argv[1:]
        if repeatable := any(hasattr(options, "seed") for _, _, options, _ in runs):
            description = f"{description}\n{LIKE}"
        if repeatable and "--like" in args[:-1]:
            from figures import like

            i = args.index("--like")
            made, before_now = like.options_of(Path(args[i + 1]), runs)
            run = next(run for run in runs if type(run[2]) is type(made))
            args = [word for word in (*args[:i], *args[i + 2 :]) if word != run[0]]
            runs = ((run[0], run[1], made, run[3]),)
        options = read_options(description, runs, script, args)
        for name, value in vars(options).items():
            if value == () and (default := getattr(type(options), name)):
                raise RunError(f"--{name.replace('_', '-')} needs values, such as {default[0]}")
        function = {type(options): function for _, function, options, _ in runs}[type(options)]
        hint = "; go on from what was saved with --resume" if hasattr(options, "resume") else ""
        before = signal.signal(signal.SIGTERM, terminate)
        try:
            function(options)
            if before_now is not None:
                after = json.loads((options.out / "result.json").read_bytes())
                like.compare(before_now, after)
        finally:
            signal.signal(signal.SIGTERM, before)
            for end in AT_END:
                end()
        if sys.stdout is not None:  # closed by the shell
            sys.stdout.flush()
    except KeyboardInterrupt:
        fail(f"interrupted{hint}", 130)
    except Terminated:
        fail(f"terminated{hint}", 143)
    except BrokenPipeError:  # as of `| head`
        # What is left unsaid goes there at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (RunError, DataError, OSError, FloatingPointError) as error:  # others are bugs
        fail(error, 1)
