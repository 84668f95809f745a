"""What a job is: its specification and every part of it."""
