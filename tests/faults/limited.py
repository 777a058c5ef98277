"""`python -m tests.faults.limited KIND BYTES SCRIPT ARGUMENTS…`: runs the script with a limit, as `ulimit` sets it.

KIND is FSIZE, the size of a file that is written, or AS, the memory.
"""

import resource
import runpy
import sys

if __name__ == "__main__":
    kind, size, script, *arguments = sys.argv[1:]
    resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (int(size), int(size)))
    sys.argv = [script, *arguments]
    runpy.run_module(script, run_name="__main__", alter_sys=True)
