"""Requests that may come twice and count once, by their Idempotency-Key."""
