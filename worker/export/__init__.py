"""From an eval checkpoint to what other programs read, each checked against the model itself."""
