"""Losses, optimizers and the step (pure); checkpoints and the run (edge)."""
