"""Run folders: what a run was given, what it has finished, its figures and tables."""
