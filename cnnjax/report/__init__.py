"""Pages that a browser opens from the disk: a run, several runs side by side, the lecture."""
