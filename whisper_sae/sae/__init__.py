"""Sparse autoencoders: architectures, training, metrics, files. Nothing here knows of speech."""
