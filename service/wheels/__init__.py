"""Uploaded wheels: packages of users that models of their jobs come from."""
