"""One file per op: its function, documentation, reference, test inputs and record."""
