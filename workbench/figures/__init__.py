"""Figures, from numbers that are there already: of a study, of tracing, of editors, of comparisons, of the lens."""
