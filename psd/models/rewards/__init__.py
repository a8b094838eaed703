"""Rewards and judges, which score a picture with or without its prompt."""
