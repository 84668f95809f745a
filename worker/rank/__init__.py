"""One rank from its first line to its exit code."""
