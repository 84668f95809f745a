"""Secrets of projects: sealed at rest, handed to the ranks of jobs that name them, never shown."""
