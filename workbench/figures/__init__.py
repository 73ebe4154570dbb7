"""Results that are there already as matplotlib figures: traces, layers, scores, editors, comparisons, the lens."""
