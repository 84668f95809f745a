"""The engine: a base rule, run over batches of parameters, and the averaged point."""
