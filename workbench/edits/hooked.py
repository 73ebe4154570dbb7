"""Edits of activations: what hooks add to a model's states."""

from abc import abstractmethod
from collections.abc import Sequence

from workbench.edits.edit import Edit
from workbench.models.hooks import EditHook
from workbench.models.model import Model


class HookEdit(Edit):
    """Changes activations in every forward pass of the model, and no weight; a method's edit gives its `hooks`.

    They are run before anybody else's hooks, in the order in which edits were applied, and see one pass at a time: the
    whole text, or with a key-value cache the positions that are new. `ForwardPass` says which these are.
    """

    @abstractmethod
    def hooks(self, model: Model) -> Sequence[EditHook]:
        """Sites of `Model.hook_name`, layers, and what becomes of the states there."""

    def check_fits(self, model: Model) -> None:
        """ValueError for a site that edits cannot use, IndexError for a layer out of range."""
        for site, layer, _ in self.hooks(model):
            if site == "embed":
                raise ValueError(f"an edit cannot change embeddings, which the noise of tracing is measured by: {self}")
            model.hook_name(site, layer)
