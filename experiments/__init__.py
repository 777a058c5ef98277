"""One script a study: load, compute, draw."""

import signal
import sys

# `python -m experiments.SCRIPT` runs this before all else: until the script listens (`cnnjax.cli`), Ctrl-C ends it at
# once and without a traceback through somebody else's imports.
_is_script = sys.argv[:1] == ["-m"] and " -mexperiments." in " ".join(sys.orig_argv).replace("-m ", "-m")
if _is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
