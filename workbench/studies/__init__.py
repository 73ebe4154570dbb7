"""Locate, edit and measure into a run folder, and what the scripts of `analyses/` compute and say beyond that."""
