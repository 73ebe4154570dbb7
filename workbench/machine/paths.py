"""Where files lie: the repository, what comes with it, and what can be made or fetched again."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
DATA = ROOT / "data"
"""What comes with the workbench: the embedded model, records, presets, published numbers."""
ATLAS = DATA / "atlas"
"""The embedded model with its facts and records."""
CACHE = ROOT / ".cache"
"""What can be made or fetched again: models, and second moments under keys of weights, layer and text."""
