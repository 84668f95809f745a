"""Attempts: who may write for a job now (fencing), and how long it may be silent (leases)."""
