"""Runs a script as a process that ends with whoever started it: `python figures/child.py SCRIPT
ARGUMENT...`.

Standard input is a pipe from the parent. Its end, when the parent closes it or is gone, even by
SIGKILL, means: stop. This works alike on every platform, where signals and process groups do not.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

GRACE = 25.0  # seconds for the script to save what it has, as after SIGTERM


def stop_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    # Which ends the process at once where nothing handles it, as on Windows.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(143)


if __name__ == "__main__":
    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).absolute().parent)  # as if the script had been called
    runpy.run_path(sys.argv[0], run_name="__main__")
