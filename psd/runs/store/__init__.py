"""Run folders on the disk: what is written, read back, kept and deleted."""
