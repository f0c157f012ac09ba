"""Interventions on a model: edits of features, patching, losses, matched controls."""
