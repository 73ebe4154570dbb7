"""Where files lie: what comes with the workbench, and what can be made or fetched again.

Nothing is written beside the package: runs go to the folder one works in, all else into the cache.
"""

import os
from importlib.resources import files
from pathlib import Path

from platformdirs import user_cache_path

_PACKAGE = Path(str(files("workbench")))
ROOT = _PACKAGE.parent
"""The checkout; of an installed package, the folder that packages are installed in."""
CHECKOUT_DATA = ROOT / "data"
"""Where the data lie in a checkout; a build puts them into the package (`[tool.hatch]` in pyproject.toml)."""
DATA = _PACKAGE / "data" if (_PACKAGE / "data").is_dir() else CHECKOUT_DATA
"""What comes with the workbench: the embedded model, records, presets, published numbers, trained networks."""
ATLAS = DATA / "atlas"
"""The embedded model with its facts and records."""


def cache_folder() -> Path:
    """The folder that the environment variable WORKBENCH_CACHE names, else the platform's own for caches."""
    named = os.environ.get("WORKBENCH_CACHE")
    return Path(named).expanduser().absolute() if named else user_cache_path("workbench", appauthor=False)


CACHE = cache_folder()
"""What can be made or fetched again: models, trained networks, and second moments under keys of weights, layer and
text."""
