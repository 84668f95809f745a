"""A fresh process evaluates each eval checkpoint before it is listed."""
