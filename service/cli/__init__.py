"""The command line: what users type, on top of the client."""
