"""Figures and cards of the models that ship."""
