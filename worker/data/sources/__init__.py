"""Where files come from: folders, object stores, HTTP, uploads."""
