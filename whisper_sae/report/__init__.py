"""Runs notebooks and publishes them as self-contained pages."""
