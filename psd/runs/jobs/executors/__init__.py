"""Other ways to run a job than in the worker's thread."""
