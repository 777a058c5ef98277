"""One rival's process: builds its work, then does it as often as a line on standard input says, and says how long.

Lines in: a number of repetitions. Lines out, as JSON: seconds, and the last loss.
"""

import json
import os
import signal
import sys
import time

from experiments.rivals.cases import Device, cases_of


def main(rival: str, suite: str, name: str, device: Device, size: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # so that what it has written to disk is removed
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints must not stand among the answers
    if rival.startswith("torch"):
        from experiments.rivals import torch_side as side
    else:
        from experiments.rivals import jax_side as side
    case = next(case for case in cases_of(device, size == "rehearsal")[suite] if case.name == name)
    side.set_precision(case.precision)
    work = side.RIVALS[rival](case)
    for line in sys.stdin:
        started = time.perf_counter()
        loss = work(int(line))
        seconds = time.perf_counter() - started
        answers.write(json.dumps({"seconds": seconds, "loss": None if loss != loss else loss}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])  # pyright: ignore[reportArgumentType]
