"""File formats: each reads one kind of file in chunks of columns."""
