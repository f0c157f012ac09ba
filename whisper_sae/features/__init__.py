"""What features respond to: index, examples, selectivity, timing, acoustics, clusters. No torch."""
