"""Whisper and any other torch module: weights, hook points, activations, decoding."""
