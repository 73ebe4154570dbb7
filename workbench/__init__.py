"""Locate facts in language models by causal tracing, edit them, and measure what the edit did."""

__version__ = "0.1.0"
