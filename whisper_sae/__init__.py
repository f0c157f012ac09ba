"""Sparse autoencoders on what Whisper says to itself while it listens.

A thin helper for the numbered notebooks: small leaves that import nothing from each other. Importing
the package does no work; import the leaf you need, `from whisper_sae import sae`.
"""

import os

# GNU OpenMP's threads wait for one another in a loop, for milliseconds: beside anything else that computes, all is ten
# times slower. A shorter wait costs nothing alone. Read once, when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Linux fills the memory of each large tensor with zeros page by page: 15 % of a pass over 16 windows on one thread,
# 3 % with pages of 2 MiB.
# Read once, when torch makes its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
