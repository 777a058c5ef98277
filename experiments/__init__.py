"""One script a study: load, compute, draw."""
