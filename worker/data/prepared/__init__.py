"""Data prepared once per node: cached rows and tokens, and how they are read back."""
