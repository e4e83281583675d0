"""Runs a script as a process that ends with whoever started it: `python figures/child.py SCRIPT
ARGUMENT...`; or serves, and forks a process for each script that is asked for.

Standard input is a pipe from the parent. Its end, when the parent closes it or is gone, even by
SIGKILL, means: stop. This works alike on every platform, where signals and process groups do not.

A server, `python figures/child.py ANSWERS MODULE...`, first imports what takes seconds, which its
scripts are spared. A line of JSON on its standard input asks for a script: its words, and its log
or null. The exit code goes as a line to the file descriptor ANSWERS. One script runs at a time.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

GRACE = 25.0  # seconds for the script to save what it has, as after SIGTERM


def stop_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    # Which ends the process at once where nothing handles it, as on Windows.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(143)


def run(words: list[str]) -> None:
    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    sys.argv = words
    sys.path[0] = str(Path(words[0]).absolute().parent)  # as if the script had been called
    runpy.run_path(words[0], run_name="__main__")


def leave(words: list[str]) -> NoReturn:
    """Run a script and end the process without taking down its imports, which takes a second."""
    code: object = 1
    try:
        run(words)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def serve(answers: int, modules: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the scripts
    for name in modules:
        importlib.import_module(name)
    for line in open(0, "rb", buffering=0, closefd=False):  # noqa: SIM115 (no byte ahead)
        words, log = json.loads(line)
        if (child := os.fork()) == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(answers)
            if log is not None:
                file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                for stream in (1, 2):
                    os.dup2(file, stream)
            leave(words)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            os.write(answers, f"{code}\n".encode())


if __name__ == "__main__":
    if sys.argv[1].isdecimal():
        serve(int(sys.argv[1]), sys.argv[2:])
    else:
        run(sys.argv[1:])
