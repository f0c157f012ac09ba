"""Sparse autoencoders on what Whisper says to itself while it listens.

A thin helper for the numbered notebooks: small leaves that import nothing from each other. Importing
the package does no work; import the leaf you need, `from whisper_sae import sae`.
"""

__version__ = "0.1.0"
