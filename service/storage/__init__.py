"""Where files are: blob stores, uploads in progress, the disk's free space."""
