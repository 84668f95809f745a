"""Models of the transformers library: the only room that imports it, and only when a job asks."""
