"""What the benchmark compares: the same work written in cnnjax, in plain Flax, and in PyTorch.

A rival is a function (case) -> timed function. It runs in a process of its own (`python -m experiments.rivals`),
because the thread pools of two frameworks in one process slow each other down.
"""
