"""Editors: frozen dataclasses of hyperparameters, called with a model and requests, that return an `Edit`."""
