"""A view of the jobs: two pages that poll the same API as everybody else.

The pages contain no data themselves, so there is one way to read a job, and one place that decides
who may. They are read-only: the cookie opens GET requests only.
"""

from roadless.service.dashboard.pages import mount

__all__ = ["mount"]
