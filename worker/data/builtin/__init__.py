"""Data sets that need no files from the user."""
