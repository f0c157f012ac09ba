"""Clips through a model into a sharded store of frames, and frames out of it for training."""
