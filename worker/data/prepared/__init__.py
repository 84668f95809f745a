"""Data prepared once a node: cached rows and tokens, and how they are read back."""
