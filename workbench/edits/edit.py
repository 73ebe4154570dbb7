"""Edit: a change of what a model says, which can be tried, kept, undone exactly, saved and loaded.

The kinds of edits: `weights` of matrices, `hooked` of activations, `redirected` of what is asked, or of who answers.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from workbench.edits import described
from workbench.edits.ledger import change_, state_fingerprint, taking_back
from workbench.edits.origin import check_made_for, made_for
from workbench.machine import hashing
from workbench.machine.sealed import load_sealed, save_sealed
from workbench.machine.shown import Shown
from workbench.machine.typed import check_types
from workbench.models.hooks import EditHook
from workbench.models.matrices import HasMatrices
from workbench.models.model import Model, Voice
from workbench.records.facts import EditRequest

_FORMAT = "workbench-edit-3"
E = TypeVar("E", bound="Edit")

_KINDS: dict[str, type["Edit"]] = {}
"""Every class of edits by its kind, for `Edit.load`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit(Shown, ABC):
    """A change of what a model says, with what it was made for and how.

    Applied edits stand in the model's ledger, `Model.edits`, oldest first. A model with edits runs their `hooks` in
    every forward pass, and scoring and generation (`score_targets`, `generate`) ask each of them whom to ask, and what.
    """

    kind: ClassVar[str]
    """Says in a file what class an edit is of: its module and name, unless it has a name of its own."""
    in_weights: ClassVar[bool] = False
    """Whether it changes weights alone, so that a checkpoint holds it."""
    redirects: ClassVar[bool] = False
    """Whether `asked` or `voices` may answer otherwise than with the model and the prompt themselves."""

    method: str
    """The editor's display name."""
    requests: tuple[EditRequest, ...]
    """What was asked for."""
    provenance: Mapping[str, Any]
    """Model, hyperparameters and versions it was made with: JSON values only."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" not in cls.__dict__:
            cls.kind = f"{cls.__module__}:{cls.__qualname__}"
        _KINDS[cls.kind] = cls

    def __post_init__(self) -> None:
        try:
            # Normalised (tuples become lists), so that it is the same after saving and loading.
            plain = json.loads(json.dumps(dict(self.provenance), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"provenance must be JSON values: {error}") from None
        object.__setattr__(self, "provenance", plain)

    def __repr__(self) -> str:
        return described.line(self)

    def _repr_html_(self) -> str:
        """What was asked for, what it changes and how it was made, for notebooks."""
        return described.table(self)

    # ---- what a kind says of itself

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All tensors that it is made of, by name."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All else that it is made of, as JSON values."""

    @classmethod
    @abstractmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> "Edit":
        """The inverse of `tensors` and `settings`; `common` are the fields of every edit."""

    def check_fits(self, model: Model) -> None:
        """ValueError or IndexError where it cannot be applied to this model."""
        del model

    @property
    def places(self) -> set[tuple[int, str]]:
        """Layer and name of the matrices that it changes."""
        return set()

    def add_(self, model: HasMatrices, places: set[tuple[int, str]]) -> None:
        """Add what it changes of some matrices to the weights, without the ledger: `apply_` is what you want."""
        del model, places

    def hooks(self, model: Model) -> Sequence[EditHook]:
        """What it does to activations, asked for anew before each forward pass, so that hooks may share a state."""
        del model
        return ()

    def asked(self, model: Model, prompt: str) -> tuple[Model, str]:
        """Who answers a prompt that this model is asked, and what is put to them."""
        return model, prompt

    def voices(self, model: Model, prompt: str) -> Sequence[Voice]:
        """Those who answer a prompt together: the one that is `asked`, unless an edit mixes several distributions."""
        who, put = self.asked(model, prompt)
        return [Voice(weight=1.0, model=who, prompt=put)]

    def norms(self, model: Model) -> dict[int, float]:
        """||dW|| / ||W|| (Frobenius) by layer, over the matrices changed there; W is without any edit."""
        del model
        return {}

    # ---- tried, kept and undone

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """The model, edited within the block; after it, also if it raises, it is exactly what it was."""
        before = _count(self, model.edits)
        with taking_back(model, lambda edits: self._once_less(edits) if _count(self, edits) > before else [*edits]):
            self.apply_(model)
            yield model

    def applied_to(self, hf: Any) -> AbstractContextManager[Any]:
        """A plain `transformers` model, edited within the block; ValueError for an edit of more than weights."""
        del hf
        raise ValueError(
            f"a plain model holds weights alone, and a {self.method} edit is of another kind: "
            "`applied` tries it on a model of the workbench"
        )

    def apply_(self, model: Model) -> None:
        """Put it in force; ValueError or IndexError, and no change, if it does not fit the model."""
        self.check_fits(model)
        change_(model, [*model.edits, self])

    def revert_(self, model: Model) -> None:
        """Take the edit back, also from below others; ValueError if it is not applied to the model."""
        if not _count(self, model.edits):
            raise ValueError(f"this {self.method} edit is not applied to {model.name}, so it cannot be reverted")
        change_(model, self._once_less(model.edits), forward=True)

    def _once_less(self, edits: "Sequence[Edit]") -> "list[Edit]":
        last = max(index for index, edit in enumerate(edits) if edit is self)
        return [edit for index, edit in enumerate(edits) if index != last]

    @classmethod
    def from_hf_diff(
        cls, before: Any, after: Any, *, method: str = "HF diff", requests: Sequence[EditRequest] = ()
    ) -> "Edit":
        """The edit of weights that turns one state of a `transformers` model into another, as made by other software.

        Each is a model (of `transformers` or of the workbench), its folder or hub name, or a state dict, at most one of
        them; what a state dict leaves out has not changed. A change of low rank is kept as factors, to within the
        rounding of the weights. ValueError naming parameters that differ and that no edit changes here, for names,
        shapes or types that do not agree, and where nothing differs.
        """
        # Weights are a kind of edit, so their module stands on this one.
        return import_module("workbench.edits.diff").from_hf_diff(before, after, method=method, requests=requests)

    def check_made_for(self, model: Model, *, force: bool = False) -> None:
        """ValueError unless it was made for the model's present state (`state_fingerprint`); a warning under `force`.

        One made in another dtype is refused with both named; under `force` it is rounded to the model's when applied.
        An edit of a sequence was made for the state that those before it leave: apply these first.
        """
        check_made_for(self, model, force=force)

    # ---- saved and loaded

    @cached_property
    def digest(self) -> str:
        """SHA-256 over its kind, settings and tensors; the same after saving and loading."""
        parts: list[Tensor | str] = [json.dumps([self.kind, self.settings()], sort_keys=True)]
        for name, tensor in sorted(self._stored().items()):
            parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}\n", tensor]
        return hashing.digest(*parts)

    def save(self, path: str | Path) -> None:
        """Write the edit as one safetensors file with a checksum, whole or not at all."""
        content = {
            "kind": self.kind,
            "method": self.method,
            "requests": [asdict(request) for request in self.requests],
            "provenance": self.provenance,
            "settings": self.settings(),
        }
        save_sealed(path, self.tensors(), content, format=_FORMAT)

    def _stored(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}

    @classmethod
    def load(cls: type[E], path: str | Path, *, model: Model | None = None, force: bool = False) -> E:
        """Read an edit that `save` wrote, of any kind that this class stands for.

        FileNotFoundError, or ValueError if the file is damaged or something else.

        Give the `model` that it is to be applied to, in the state that it is to be applied in, and an edit that was
        made for another is refused with a ValueError, or under `force` read with a warning. It is asked here, where
        an edit comes from outside, and not in `apply_`, because it takes a hash of all the weights.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no edit at '{path}'")
        try:
            tensors, content = load_sealed(path, format=_FORMAT)
            kind = content["kind"]
            if kind not in _KINDS and (kind == "weights" or kind.startswith("workbench.")):
                # A kind of its own registers itself when its module is imported.
                import_module("workbench.edits.weights" if kind == "weights" else kind.partition(":")[0])
            if kind not in _KINDS:
                known = ", ".join(sorted(_KINDS))
                raise ValueError(f"its kind is {kind!r}, known are {known}; import what defines it (--plugin)")
            if not issubclass(_KINDS[kind], cls):
                raise ValueError(f"its kind is {kind!r}, which is no {cls.__name__}")
            edit: Any = _KINDS[kind].restore(
                tensors,
                content["settings"],
                method=content["method"],
                requests=tuple(EditRequest(**request) for request in content["requests"]),
                provenance=content["provenance"],
            )
            check_types(edit)
        except (
            ImportError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            ArithmeticError,
            RuntimeError,
        ) as error:
            why = " ".join((str(error) or type(error).__name__).split())
            raise ValueError(f"'{path}' is not an edit that can be read: {why[:400]}") from None
        if model is not None:
            edit.check_made_for(model, force=force)
        return edit


def provenance(model: Model, hyperparameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What an editor notes down: the model and its state as it finds it, its hyperparameters, versions, and `more`."""
    return made_for(model.name, state_fingerprint(model), model.dtype, hyperparameters, **more)


def _count(edit: Edit, edits: Sequence[Edit]) -> int:
    return sum(each is edit for each in edits)
