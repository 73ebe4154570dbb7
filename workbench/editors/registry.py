"""The editors by name."""

from workbench.editors.alphaedit import AlphaEdit
from workbench.editors.emmet import EMMET
from workbench.editors.ft import FT, FTL
from workbench.editors.memit import MEMIT
from workbench.editors.pmet import PMET
from workbench.editors.rome import ROME, RROME

EDITORS: dict[str, type] = {
    "ft": FT,
    "ft_l": FTL,
    "rome": ROME,
    "r_rome": RROME,
    "memit": MEMIT,
    "emmet": EMMET,
    "pmet": PMET,
    "alphaedit": AlphaEdit,
}
"""The editors by name."""
