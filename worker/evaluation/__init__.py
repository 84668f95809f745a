"""Evaluation at the averaged point x: tasks, sets, metrics, exact sums."""
