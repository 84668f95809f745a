"""Environments of uploaded wheels on a node."""
