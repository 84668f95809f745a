"""Training states and eval checkpoints as files, written and read back."""
