"""A file for each tab."""
