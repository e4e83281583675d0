"""Data sources, one module each. Downloads and parsed caches lie beside the modules and are ignored by git."""

import os
import tempfile
from pathlib import Path


class DataError(ValueError):
    """A data set is missing or is not what it should be; the message is one line that says what to do."""


def write_aside(path: Path, data: bytes | memoryview) -> None:
    """Write the file under a temporary name and rename it, so that `path` is the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
