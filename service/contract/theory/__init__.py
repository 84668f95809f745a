"""The convex bound over HTTP: the analysis of a job, and plans without one."""
