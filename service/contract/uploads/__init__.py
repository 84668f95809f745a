"""What users upload: data sets and wheels."""
