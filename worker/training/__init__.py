"""The training loop: steps, the learning rate schedule, evaluations, diagnostics, usage."""
