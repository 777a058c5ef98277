"""Two processes and one run folder."""

import signal

from tests.faults import runs
from tests.faults.counts import count


def test_a_second_process_is_refused_and_the_lock_of_a_killed_one_taken_over(reference, new):
    workdir = new()
    first = runs.begin(workdir)
    runs.wait_for((workdir / "checkpoints" / "epochs" / "0").exists, first)
    first.send_signal(signal.SIGSTOP)
    try:
        before = runs.digests(workdir)
        said = runs.one_line(runs.end(runs.begin(workdir)))
        assert f"must not be in use by another process, and is (pid {first.pid} on {runs.HOST})" in said
        assert runs.digests(workdir) == before
    finally:
        first.kill()
        first.communicate()
    count("a second process in the same folder", "refused")
    assert (workdir / "lock").read_text() == f"pid {first.pid} on {runs.HOST}\n"
    runs.finish(workdir)
    runs.same_end(workdir, reference)
    count("a lock left behind by a killed process", "mended")
