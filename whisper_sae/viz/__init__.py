"""Figures, tables and audio players of notebooks and pages. No torch."""
