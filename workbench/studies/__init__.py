"""What the scripts of `analyses/` compute and show beyond one study: sweeps, comparisons, benchmarks."""
