"""Where files are: blob stores, uploads on their way in, the disk's free space."""
