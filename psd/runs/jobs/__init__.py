"""Jobs: a queue, a thread that drives runs, their controls and estimates."""
