"""Effect sizes, intervals, permutation tests, probes. Arrays and tables in, tables out. No torch."""
