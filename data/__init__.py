"""Data sources, one module each. Downloads and parsed caches lie beside the modules and are ignored by git."""

import os
from pathlib import Path


class DataError(ValueError):
    """A data set is missing or is not what it should be; the message is one line that says what to do."""


def write_aside(path: Path, data: bytes | memoryview) -> None:
    """Write under a temporary name, then rename: `path` is the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
