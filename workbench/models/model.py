"""The one adapter over TransformerLens: hook sites, forward passes, and the edits that are applied.

Every quirk of a model family is met here and in `checkpoints`, nowhere else. The weights stay raw, so that an
edit made through `Model.weight` is what `Model.save_pretrained` writes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.models.hold import Hold
from workbench.models.hooks import HOOK_NAMES, ForwardPass, Hook, Watch
from workbench.models.tokens import Tokens
from workbench.models.weights import Weights

T = TypeVar("T")

SITES = ("resid_post", "mlp_out", "attn_out")
"""The sites that causal tracing restores."""


@dataclass(kw_only=True, eq=False, repr=False)
class Model(Weights):
    """A language model with its own tokenizer, raw weights, hooks and snapshots; made by `load_model`."""

    edits: list = field(default_factory=list)
    """Ledger of `workbench.edits.ledger`: the edits applied now, oldest first."""
    originals: dict = field(default_factory=dict)
    """Ledger of `workbench.edits.ledger`: untouched copies of the matrices that edits have changed."""
    sums: dict = field(default_factory=dict)
    """Ledger of `workbench.edits.ledger`: in float32, the sums that matrices of half precision are rounded from."""
    unsettled: set = field(default_factory=set)
    """Ledger of `workbench.edits.ledger`: the matrices that are being written, or were when it was interrupted."""
    hold: Hold = field(default_factory=Hold)
    """Which thread has edits applied within a block; no other may run or edit the model until it leaves."""
    _answering: bool = False
    """Whether those who run the model now have asked the edits first, see `answering`."""
    _aside: tuple = ()
    """Edits that forward passes leave out but for the weights that they change, see `without`."""
    _found: dict = field(default_factory=dict)
    """Function -> what it found, for `once`."""

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.n_layers} layers x {self.d_model}, {self.dtype}, {self.device})"

    def once(self, make: Callable[["Model"], T]) -> T:
        """What `make` finds out about this model, which is asked of it once: its blocks, what its hooks mean.

        It sees the weights as they are, without the hooks and redirections of edits that may be applied meanwhile.
        """
        if make not in self._found:
            with self.without(self.edits):
                self._found[make] = make(self)
        return self._found[make]

    # ---- hooks

    def hook_name(self, site: str, layer: int | None = None) -> str:
        """TransformerLens's name of a site.

        `embed` (token embeddings, takes no layer), `resid_pre`, `resid_post`, `attn_out` and `mlp_out` (what is added
        to the residual stream), `mlp_write` (W_out's output; mostly the same as `mlp_out`, see `mlp_contribution`) and
        `mlp_in` (what W_in multiplies), all [batch pos d_model]; `mlp_key` (what W_out multiplies) and `mlp_pre` (what
        the nonlinearity is applied to, of a gated MLP the gate's; where it is 0 so is `mlp_key`), [batch pos d_mlp];
        `mlp_read` and `mlp_gate` (W_in's and W_gate's outputs), [batch pos d_mlp].
        ValueError for an unknown site, IndexError for a layer out of range.
        """
        if site not in HOOK_NAMES:
            raise ValueError(f"unknown site {site!r}; expected one of {', '.join(HOOK_NAMES)}")
        return HOOK_NAMES[site] if site == "embed" else HOOK_NAMES[site].format(self._layer(layer))

    def logits(
        self, tokens: Tokens, *, hooks: Sequence[Hook] = (), keep_last: int | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits under hooks, at every position or only at the last `keep_last` of the padded batch.

        Gradients flow to any tensor that a hook inserts. RuntimeError naming any hook that never fired.
        """
        logits = self._run(tokens, hooks, keep_last)
        return logits if keep_last is None else logits[:, -keep_last:]

    @torch.no_grad()
    def activations(self, tokens: Tokens, names: Sequence[str], *, hooks: Sequence[Hook] = ()) -> dict[str, Tensor]:
        """Activations at the hooks named, detached, under other hooks; the run stops after the last layer needed.

        "logits" among the names is the last position's, and needs them all.
        """
        found: dict[str, Tensor] = {}

        def keeper(name: str) -> Callable:
            return lambda tensor, hook: found.update({name: tensor.detach()})

        layers = {name: re.match(r"blocks\.(\d+)\.", name) for name in (*names, *(name for name, _ in hooks))}
        stop = 1 + max((int(layer[1]) for layer in layers.values() if layer), default=-1)
        early = all(layer or name == HOOK_NAMES["embed"] for name, layer in layers.items())
        keepers = [(name, keeper(name)) for name in names if name != "logits"]
        options = {"stop_at_layer": stop} if early and stop < self.n_layers else {}
        logits = self._run(tokens, [*keepers, *hooks], 1, **options)
        return found | ({"logits": logits[:, -1:]} if "logits" in names else {})

    def step(self, ids: Int[Tensor, "batch new"], which: ForwardPass, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the last position, and the key-value cache with the new positions."""
        options = {"return_type": "logits_and_cache", "use_past_kv_cache": True, "past_key_values": cache}
        return self._forward(ids, which, keep_last=1, use_cache=True, **options)

    def _run(self, tokens: Tokens, hooks: Sequence[Hook], keep_last: int | None, **options: Any) -> Any:
        whole = ForwardPass(mask=tokens.mask, offset=0, prompt_ends=tokens.prompt_ends)
        return self._forward(tokens.ids, whole, hooks, keep_last, **options)

    def _forward(
        self,
        ids: Tensor,
        which: ForwardPass,
        hooks: Sequence[Hook] = (),
        keep_last: int | None = None,
        **options: Any,
    ) -> Any:
        """A forward pass under the hooks of the edits that are applied, and then these."""
        self.check_direct()
        self.check_settled()
        known = self.bridge.hook_dict if hooks else {}
        for name, _ in hooks:
            if name not in known:
                raise ValueError(f"{self.name} has no hook {name!r}; Model.hook_name gives the names of the sites")
        options.setdefault("use_cache", False)
        if keep_last is not None and self.keeps_logits:
            options["logits_to_keep"] = keep_last
        watch = Watch(hooks)
        running: list[Any] = [*self.edit_hooks(which), *watch.hooks]
        output = self.bridge.run_with_hooks(ids, fwd_hooks=running, attention_mask=which.mask, **options)
        if silent := watch.silent():
            raise RuntimeError(f"hooks that never fired on {self.name}: {', '.join(silent)}")
        return output

    # ---- edits

    def edit_hooks(self, which: ForwardPass | None = None) -> list[Hook]:
        """The hooks of the edits that are applied, oldest edit first, for one forward pass."""

        def seen(function: Callable) -> Callable:
            return lambda tensor, hook: function(tensor, which)

        return [
            (self.hook_name(site, layer), seen(function))
            for edit in self._in_force()
            for site, layer, function in edit.hooks(self)
        ]

    def voices(self, prompt: str) -> "list[Voice]":
        """Who answers a prompt, and what is put to them, by the edits that are applied; the latest is asked first."""
        found = [Voice(weight=1.0, model=self, prompt=prompt)]
        for edit in reversed(self.edits):
            found = [further for voice in found for further in self._further(edit, voice)]
        for voice in found:
            if voice.model.d_vocab != self.d_vocab:
                raise ValueError(f"{voice.model.name} answers for {self.name}, but has another vocabulary")
        return [
            each
            for voice in found
            for each in (
                [voice]
                if voice.model is self
                else (replace(one, weight=voice.weight * one.weight) for one in voice.model.voices(voice.prompt))
            )
        ]

    def _further(self, edit: Any, voice: "Voice") -> "list[Voice]":
        """What an edit makes of a voice; others than this model's own have left its edits behind."""
        if voice.model is not self:
            return [voice]
        return [replace(one, weight=voice.weight * one.weight) for one in edit.voices(self, voice.prompt)]

    def check_direct(self) -> None:
        """ValueError while edits are applied that change what is asked, for all but those who have asked them."""
        redirecting = [] if self._answering else [edit.method for edit in self._in_force() if edit.redirects]
        if redirecting:
            methods = ", ".join(dict.fromkeys(redirecting))
            raise ValueError(
                f"edits that change what is asked are applied to {self.name} ({methods}): only scoring and generation "
                "follow them; take them back to trace, edit or look into the model"
            )

    def check_settled(self) -> None:
        """RuntimeError while another thread edits the model, or where one was stopped while it wrote weights."""
        self.hold.check(self.name)
        if self.unsettled:
            matrices = ", ".join(f"{matrix} of layer {layer}" for layer, matrix in sorted(self.unsettled))
            raise RuntimeError(
                f"writing {matrices} of {self.name} was cut short: `workbench.edits.ledger.settle_(model)` finishes it"
            )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block forward passes may run although edits redirect prompts: of those who have followed them."""
        with self._with("_answering", True):
            yield

    @contextmanager
    def without(self, edits: Sequence[Any]) -> Iterator[None]:
        """Within the block forward passes run as if these edits, which stay in the ledger, changed weights alone."""
        with self._with("_aside", (*self._aside, *edits)):
            yield

    def _in_force(self) -> list[Any]:
        """The edits whose hooks and redirections forward passes follow."""
        return [edit for edit in self.edits if not any(edit is each for each in self._aside)]

    @contextmanager
    def _with(self, name: str, value: Any) -> Iterator[None]:
        """A field has another value within the block; after it, also if it is interrupted anywhere, its own."""
        before = getattr(self, name)
        try:
            try:
                setattr(self, name, value)
                yield
            finally:
                setattr(self, name, before)
        except BaseException:
            setattr(self, name, before)
            raise

    def save_pretrained(self, folder: Path) -> None:
        """Write a Hugging Face folder of the present weights and the tokenizer; reloads to equal logits.

        ValueError while an edit is applied that a checkpoint cannot hold, which changes more than weights.
        """
        self._check_weights_alone("a checkpoint")
        self.checkpoint.save(folder)

    def to_hf(self) -> Any:
        """A plain `transformers` model in memory, of the weights that `save_pretrained` would write, or its error."""
        self.check_settled()
        self._check_weights_alone("a plain model")
        return self.checkpoint.plain()

    def _check_weights_alone(self, what: str) -> None:
        if more := ", ".join(dict.fromkeys(edit.method for edit in self.edits if not edit.in_weights)):
            raise ValueError(
                f"{what} holds weights alone, and {more} edits of {self.name} change activations or prompts: take them "
                "back, and save them as edits"
            )


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One of those who answer a prompt together; mostly one answers alone."""

    weight: float
    """Its part in the distribution of what comes next; the parts of a prompt's voices sum to 1."""
    model: Model
    """Who answers."""
    prompt: str
    """What is put to it."""
