"""Precision, stochastic rounding, and sharded tensors."""
