"""One script a study: load, compute, draw."""

import os
import signal
import sys
from pathlib import Path

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE, _SINCE = "glibc.malloc.hugetlb", (2, 35)

# `python -m experiments.SCRIPT` runs this before all else: until the script listens (`cnnjax.cli`), Ctrl-C ends it at
# once and without a traceback through somebody else's imports.
_is_script = sys.argv[:1] == ["-m"] and " -mexperiments." in " ".join(sys.orig_argv).replace("-m ", "-m")
if _is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _gets_huge_pages_if_asked() -> bool:
    """Whether large pieces of memory come in huge pages for a process that asks, and for no other."""
    try:
        if "[madvise]" not in _HUGE_PAGES.read_text():
            return False
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (OSError, ValueError):  # no Linux, or another C library
        return False
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= _SINCE


def _ask_for_huge_pages() -> None:
    """Starts the script anew, as the same process, with its memory in huge pages, unless the user has chosen.

    XLA:CPU takes what a call needs from the system anew each time; in pages of 4 kB that is up to a fifth of a training
    step. The C library reads its settings when a process starts.
    """
    chosen = os.environ.get("GLIBC_TUNABLES", "")
    if _TUNABLE not in chosen and _gets_huge_pages_if_asked():
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (chosen, f"{_TUNABLE}=1")))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if _is_script:
    _ask_for_huge_pages()
