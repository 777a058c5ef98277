"""Many trainings at once: which members there are, how they are trained together, and what came out."""
