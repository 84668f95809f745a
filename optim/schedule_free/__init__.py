"""Schedule-free averaging: fast forms, reference text, closures, wrapper."""
