"""Jobs: what users submit, and the only place where a phase changes."""
