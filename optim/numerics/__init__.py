"""Precision, stochastic rounding, and tensors in shards."""
