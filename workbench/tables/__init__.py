"""Estimates in rows and columns, as text, Markdown, LaTeX and CSV."""
