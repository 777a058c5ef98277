"""Convolutional networks as pure functions in JAX, and what they learn."""

__version__ = "0.2.0"
