"""Models of the transformers library: only this package imports it, and only on demand."""
