"""The interactive feature explorer: widget, requests, annotations, static dashboard."""
