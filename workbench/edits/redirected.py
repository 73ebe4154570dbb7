"""Edits of what is asked: what is put before a prompt, or which model answers it."""

from abc import abstractmethod

from workbench.edits.edit import Edit
from workbench.models.model import Model


class RedirectEdit(Edit):
    """Changes what is asked, or who answers, and neither weights nor activations; a method's edit says how in `asked`.

    Only scoring and generation follow it: while one is applied, whoever runs the model otherwise (tracing, the lens,
    editors) is refused.
    """

    redirects = True

    @abstractmethod
    def asked(self, model: Model, prompt: str) -> tuple[Model, str]:
        """Who answers a prompt that this model is asked, and what is put to them; a model of the same vocabulary."""
