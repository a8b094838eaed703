"""Rewards and judges: what scores a picture, with or without its prompt."""
