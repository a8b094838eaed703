"""Diffusion priors: the U-Net with its schedule, text encoder and autoencoder."""
