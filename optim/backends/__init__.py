"""Execution: a whole update in one pass over memory, where the machine has a kernel for it.

`choose` finds the backend for tensors, `form` describes an update; `numba_cpu` and `triton_gpu` run
it. Plain torch, in `roadless.optim.core.engine`, does whatever no backend accepts.
"""
