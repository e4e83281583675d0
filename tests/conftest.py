import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data import newsgroups
from figures.run import release

# pytest-xdist runs one process per core: two of two threads each would slow each other down several
# times.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # torch is imported by now

# A shell starts what is in its background with SIGINT ignored, which the scripts that tests
# interrupt would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def unclaimed() -> Iterator[None]:
    """Folders that a test ran in are left to other processes."""
    yield
    release()


@pytest.fixture(scope="session")
def archive() -> Path:
    """The real 20 Newsgroups archive; tests that need it are skipped, by name, without it."""
    named = os.environ.get(newsgroups.ENVIRONMENT_VARIABLE)
    path = Path(named) if named else Path(newsgroups.__file__).with_name(newsgroups.ARCHIVE)
    if not path.is_file():
        pytest.skip(
            f"no 20 Newsgroups archive: set {newsgroups.ENVIRONMENT_VARIABLE} or put it into data/"
        )
    return path


@pytest.fixture(scope="session")
def newsgroups_corpus(archive: Path) -> newsgroups.Corpus:
    return newsgroups.parse_archive(archive)
