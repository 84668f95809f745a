"""What a checkpoint is: its manifest, and how long it is kept."""
