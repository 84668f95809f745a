"""A window on the jobs: two pages that poll the same API as everybody else.

The pages carry no data of their own, so there is one way to read a job, and one place that decides
who may. They look and never touch: the cookie opens GET requests only.
"""

from roadless.service.dashboard.pages import mount

__all__ = ["mount"]
