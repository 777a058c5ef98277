"""Faults put into real runs: killed processes, flipped bits, full disks, two processes at once.

The quick part runs with every test. `pytest -m faults` runs the long one (its seed: CNNJAX_FAULT_SEED), and with
CNNJAX_WRITE_FAULTS=1 it writes what it counted into the table of docs/faults.md.
"""
