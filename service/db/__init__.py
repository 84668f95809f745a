"""The database: sessions and tables. SQL itself lives in each package's ``store.py``."""
