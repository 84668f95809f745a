"""Models of the transformers library: only this package imports it, and only when a job asks."""
