"""Schedule-free averaging: fast forms, reference forms, closure forms, wrapper."""
