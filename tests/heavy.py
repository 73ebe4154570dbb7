"""What takes long to import.

The tests import it before the types of the workbench are checked: what a checked module imports first is compiled
anew, under another name. `make` runs it to have it compiled once.
"""

import datasets  # noqa: F401
import hypothesis  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import peft  # noqa: F401
import scipy.stats  # noqa: F401
import seaborn  # noqa: F401
import transformer_lens  # noqa: F401
