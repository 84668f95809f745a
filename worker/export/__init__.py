"""Eval checkpoints in formats that other programs read, each checked against the model itself."""
