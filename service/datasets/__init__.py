"""Uploaded data sets: files in parts, then sealed for jobs to train on."""
