"""Data sets: one file per source, and the order in which training visits the samples."""
