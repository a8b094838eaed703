"""What a page knows of a run."""
