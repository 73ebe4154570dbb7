"""Editors: frozen dataclasses of hyperparameters, called with a model and requests, that return an `Edit`."""

from workbench.editors.rome import ROME

EDITORS: dict[str, type] = {"rome": ROME}
"""The editors by name."""
