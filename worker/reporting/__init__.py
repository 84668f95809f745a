"""What a rank reports: events by outbox and spool, checkpoints by an uploader."""
