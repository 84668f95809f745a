"""The training loop: steps, learning rates, evaluations, diagnostics, usage."""
