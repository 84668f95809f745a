"""Ranks together: process group, parallelism, precision, store."""
