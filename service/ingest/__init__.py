"""What ranks report: one report is one transaction over jobs, metrics and checkpoints."""
