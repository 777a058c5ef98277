"""Drawing: one figure a file. NumPy arrays in, image files out; the only room that imports matplotlib."""
