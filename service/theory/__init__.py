"""The convex theory next to a running job: what its schedule promises, and what it was worth.

``reading`` fetches what a job has logged; ``steps``, ``averaging``, ``bounds``, ``analysis``,
``advice`` and ``caveats`` analyse it with ``roadless.optim.theory.bounds`` and touch no database.
``planner`` answers for jobs that do not exist yet, and ``concurrency`` limits how many compute at
once.
"""
