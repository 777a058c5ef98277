"""`python -m tests.faults.limited KIND BYTES SCRIPT ARGUMENTS…`: runs the script with a limit, as `ulimit` sets it.

KIND is FSIZE, the size of a file that is written, or AS, the memory; of 0 bytes: no limit. At the end it writes to
standard error how much memory the process had at most.
"""

import contextlib
import re
import resource
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    kind, size, script, *arguments = sys.argv[1:]
    if int(size):
        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (int(size), int(size)))
    sys.argv = [script, *arguments]
    try:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    finally:
        with contextlib.suppress(OSError):
            peak = re.findall(r"VmPeak:\s+(\d+) kB", Path("/proc/self/status").read_text())
            print(f"most memory: {1024 * int(peak[0])} bytes", file=sys.stderr)
