import os
import signal
import time

import pytest

from tests.faults import counts, runs


@pytest.fixture(scope="session", autouse=True)
def processes_hear_sigint():
    """In a background shell it is ignored, which every process that is started inherits."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The fixture `new` for the whole session."""
    return lambda: tmp_path_factory.mktemp("fault") / "run"


@pytest.fixture
def new(folders):
    """`new()` names a run folder that is not there yet, in a folder of its own."""
    return folders


@pytest.fixture(scope="session")
def reference(folders):
    workdir = folders()
    runs.finish(workdir)
    return runs.Reference(workdir, runs.everything(workdir))


@pytest.fixture(scope="session")
def seconds(reference, folders):
    """How long a process takes whose programs have been compiled before."""
    workdir = folders()
    started = time.monotonic()
    runs.finish(workdir)
    return time.monotonic() - started


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == 0 and os.environ.get("CNNJAX_WRITE_FAULTS") == "1":
        counts.write(runs.SEED)
