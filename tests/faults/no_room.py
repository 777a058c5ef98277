"""`python -m tests.faults.no_room BYTES SCRIPT ARGUMENTS…`: runs the script with a limit on the size of its files."""

import resource
import runpy
import sys

if __name__ == "__main__":
    size, script, *arguments = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    sys.argv = [script, *arguments]
    runpy.run_module(script, run_name="__main__", alter_sys=True)
