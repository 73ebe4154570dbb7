"""The one adapter over TransformerLens: tokens, hook sites, weights, snapshots.

Every quirk of a model family is met here and in `checkpoints`, nowhere else. The weights stay raw, so that an
edit made through `Model.weight` is what `Model.save_pretrained` writes.
"""

import hashlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from workbench.models.batching import BUDGET, Footprint, consecutive
from workbench.models.checkpoints import Checkpoint
from workbench.models.contribution import Contribution, of_mlp
from workbench.models.tokens import TextTokenizer, TokenRow, Tokens

T = TypeVar("T")

Hook = tuple[str, Callable]
"""A hook's name and `fn(tensor, hook) -> tensor | None`."""
EditHook = tuple[str, int, Callable[[Tensor, "ForwardPass"], Tensor | None]]
"""A site of `Model.hook_name`, a layer, and what an edit makes of the states there; None leaves them as they are."""

SITES = ("resid_post", "mlp_out", "attn_out")
"""The sites that causal tracing restores."""

_HOOK_NAMES = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_key": "blocks.{}.mlp.hook_post",
    "mlp_write": "blocks.{}.mlp.out.hook_out",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardPass:
    """Which tokens a forward pass runs: what the hooks of edits need to know where they are."""

    mask: Int[Tensor, "batch key"]
    """1 where a token is real, 0 where it is padding; covers the positions in the cache too."""
    offset: int
    """Positions in the key-value cache: the index, in `mask`, of the first position that is run now."""
    prompt_ends: Int[Tensor, " batch"]
    """Index, in `mask`, of the last token of each prompt; what follows is an answer, given or generated."""


@dataclass(kw_only=True, eq=False, repr=False)
class Model:
    """A language model with its own tokenizer, raw weights, hooks and snapshots; made by `load_model`."""

    name: str
    """The name or path it was loaded from."""
    checkpoint: Checkpoint
    """The loaded weights and tokenizer."""
    device: torch.device
    """Where the weights are."""
    dtype: torch.dtype
    """Type of the weights and of the logits."""
    memory: float = BUDGET
    """GiB that a forward pass may hold beside the weights; batches are made smaller to stay below."""
    edits: list = field(default_factory=list)
    """Ledger of `workbench.edits.edit`: the edits applied now, oldest first."""
    originals: dict = field(default_factory=dict)
    """Ledger of `workbench.edits.edit`: untouched copies of the matrices that edits have changed."""
    _digests: dict = field(default_factory=dict)
    """Parameter -> (state of its memory, hash of its content), for `fingerprint`."""
    _answering: bool = False
    """Whether those who run the model now have asked the edits first, see `answering`."""
    _found: dict = field(default_factory=dict)
    """Function -> what it found, for `once`."""

    def __post_init__(self) -> None:
        self.n_layers: int = self.bridge.cfg.n_layers
        self.d_model: int = self.bridge.cfg.d_model
        self.n_ctx: int = self.bridge.cfg.n_ctx
        self.d_mlp: int = self.weight(0).shape[0]
        hf: Any = self.bridge.original_model
        self.text = TextTokenizer(
            self.tokenizer,
            name=self.name,
            n_ctx=self.n_ctx,
            n_rows=len(hf.get_input_embeddings().weight),
            device=self.device,
        )
        self._can_keep = "logits_to_keep" in inspect.signature(hf.forward).parameters
        configured = getattr(getattr(hf, "generation_config", None), "eos_token_id", None)
        ends = [*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id]
        self.ends: list[int] = sorted({end for end in ends if isinstance(end, int)})

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.n_layers} layers x {self.d_model}, {self.dtype}, {self.device})"

    @property
    def bridge(self) -> TransformerBridge:
        """The TransformerLens model."""
        return self.checkpoint.bridge

    def once(self, make: Callable[["Model"], T]) -> T:
        """What `make` finds out about this model, which is asked of it once: its blocks, what its hooks mean."""
        if make not in self._found:
            self._found[make] = make(self)
        return self._found[make]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Live parameters under the checkpoint's names, tied ones once.

        GPT-NeoX runs its attention from split copies, so a write to its fused `query_key_value` here changes
        what is saved but not the logits.
        """
        return self.checkpoint.parameters

    # ---- tokens

    def tokenize(self, texts: Sequence[str], *, padding_side: Literal["left", "right"] = "right") -> Tokens:
        """Tokenise and pad, with what the tokenizer itself prepends (BOS on Llama, not on GPT-2), never EOS.

        ValueError for no texts, an empty text, or a text longer than the context.
        """
        return self.pad(self.encode(texts), padding_side=padding_side)

    def encode(self, texts: Sequence[str]) -> list[TokenRow]:
        """Tokenise without padding; see `tokenize`."""
        return self.text.encode(texts)

    def pad(
        self,
        rows: Sequence[TokenRow],
        *,
        padding_side: Literal["left", "right"] = "right",
        prompts: Sequence[int] | None = None,
    ) -> Tokens:
        """Rows as one batch; `prompts` are the numbers of tokens of each that are its prompt, all unless given."""
        return self.text.pad(rows, padding_side=padding_side, prompts=prompts)

    def pieces(self, texts: Sequence[str], *, keep: int | None) -> list[TokenRow]:
        """Tokenise plain text of any length, cut where it exceeds the context or the memory, with a warning then.

        `keep` says how many positions will be unembedded (None: all); each piece is begun like a text of its own.
        """
        longest = self.footprint.longest(self.n_ctx, keep=keep, budget=self.memory)
        rows = self.text.pieces(texts, longest)
        if len(rows) > len(texts):
            what = "its context" if longest == self.n_ctx else f"what fits into {self.memory:g} GiB"
            # Without counts, so that it is said once however many lots of texts there are.
            warnings.warn(f"texts of more than {longest:,} tokens of {self.name}, {what}, are cut", stacklevel=3)
        return rows

    def batches(
        self,
        rows: Sequence[TokenRow],
        batch_size: int,
        *,
        keep: int | Sequence[int] | None,
        new: int = 0,
        gradients: bool = False,
    ) -> list[list[int]]:
        """Indices of the rows in batches, like lengths together, each of at most `batch_size` rows and within `memory`.

        `keep` positions at the end will be unembedded (None: all), of all rows or of each; `new` tokens generated;
        `gradients` taken, and then the rows stay in their order.
        """
        keeps = [keep] * len(rows) if keep is None or isinstance(keep, int) else list(keep)
        order = list(range(len(rows)))
        if not gradients:
            order.sort(key=lambda index: len(rows[index].text or rows[index].ids))
        size = self.footprint.training_size if gradients else partial(self.footprint.size, cached=new > 0)
        parts = consecutive(
            [len(rows[index].ids) + new for index in order],
            [keeps[index] for index in order],
            at_most=batch_size,
            fits=lambda count, pos, kept: size(count, pos, keep=kept) <= self.memory * 2**30,
        )
        return [[order[place] for place in part] for part in parts]

    @cached_property
    def footprint(self) -> Footprint:
        """What a forward pass holds, by the shape of its batch."""
        return Footprint(
            n_layers=self.n_layers,
            n_heads=self.bridge.cfg.n_heads,
            d_model=self.d_model,
            d_mlp=self.d_mlp,
            d_vocab=self.bridge.cfg.d_vocab,
            itemsize=self.dtype.itemsize,
            unembeds_all=not self._can_keep,
        )

    def token_strings(self, ids: Int[Tensor, " pos"]) -> list[str]:
        """Each token alone as text, its leading space kept."""
        return self.text.strings(ids)

    # ---- hooks

    def hook_name(self, site: str, layer: int | None = None) -> str:
        """TransformerLens's name of a site.

        `embed` (token embeddings, takes no layer), `resid_pre`, `resid_post`, `attn_out` and `mlp_out` (what is added
        to the residual stream), `mlp_write` (W_out's output; mostly the same as `mlp_out`, see `mlp_contribution`) and
        `mlp_in` (what W_in multiplies), all [batch pos d_model]; `mlp_key` (what W_out multiplies, [batch pos d_mlp]).
        ValueError for an unknown site, IndexError for a layer out of range.
        """
        if site not in _HOOK_NAMES:
            raise ValueError(f"unknown site {site!r}; expected one of {', '.join(_HOOK_NAMES)}")
        return _HOOK_NAMES[site] if site == "embed" else _HOOK_NAMES[site].format(self._layer(layer))

    def _layer(self, layer: int | None) -> int:
        if layer is None or not 0 <= layer < self.n_layers:
            raise IndexError(f"layer {layer} is out of range; {self.name} has layers 0 to {self.n_layers - 1}")
        return layer

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
            def keep(tensor: Tensor, hook: Any) -> None:
                found[name] = tensor.detach()

            return keep

        layers = [re.match(r"blocks\.(\d+)\.", name) for name in names]
        stop = 1 + max((int(layer[1]) for layer in layers if layer), default=-1)
        early = all(layer or name == _HOOK_NAMES["embed"] for layer, name in zip(layers, names, strict=True))
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
        fired: set[int] = set()

        def watched(index: int, function: Callable) -> Callable:
            def call(tensor: Tensor, hook: Any) -> Tensor | None:
                fired.add(index)
                return function(tensor, hook=hook)

            return call

        edited = self.edit_hooks(which)
        known = self.bridge.hook_dict if hooks or edited else {}
        for name, _ in hooks:
            if name not in known:
                raise ValueError(f"{self.name} has no hook {name!r}; Model.hook_name gives the names of the sites")
        options.setdefault("use_cache", False)
        if keep_last is not None and self._can_keep:
            options["logits_to_keep"] = keep_last
        watching: list[Any] = [(name, watched(index, function)) for index, (name, function) in enumerate(hooks)]
        mask = which.mask
        output = self.bridge.run_with_hooks(ids, fwd_hooks=[*edited, *watching], attention_mask=mask, **options)
        silent = sorted({name for index, (name, _) in enumerate(hooks) if index not in fired})
        if silent:
            raise RuntimeError(f"hooks that never fired on {self.name}: {', '.join(silent)}")
        return output

    # ---- edits

    def edit_hooks(self, which: ForwardPass | None = None) -> list[Hook]:
        """The hooks of the edits that are applied, oldest edit first, for one forward pass."""

        def seen(function: Callable) -> Callable:
            return lambda tensor, hook: function(tensor, which)

        return [
            (self.hook_name(site, layer), seen(function))
            for edit in self.edits
            for site, layer, function in edit.hooks(self)
        ]

    def asked(self, prompt: str) -> tuple["Model", str]:
        """Who answers a prompt, and what is put to them, by the edits that are applied; the latest is asked first."""
        for edit in reversed(self.edits):
            model, prompt = edit.asked(self, prompt)
            if model is not self:
                if model.bridge.cfg.d_vocab != self.bridge.cfg.d_vocab:
                    raise ValueError(f"{model.name} answers for {self.name}, but has another vocabulary")
                return model.asked(prompt)
        return self, prompt

    def check_direct(self) -> None:
        """ValueError while edits are applied that change what is asked, for all but those who have asked them."""
        if not self._answering and any(edit.redirects for edit in self.edits):
            methods = ", ".join(dict.fromkeys(edit.method for edit in self.edits if edit.redirects))
            raise ValueError(
                f"edits that change what is asked are applied to {self.name} ({methods}): only scoring and generation "
                "follow them; take them back to trace, edit or look into the model"
            )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block forward passes may run although edits redirect prompts: of those who have followed them."""
        before, self._answering = self._answering, True
        try:
            yield
        finally:
            self._answering = before

    # ---- weights

    def mlp_contribution(self, layer: int) -> Contribution:
        """How W_out's output (`mlp_write`) becomes what a layer's MLP adds to the residual stream (`mlp_out`)."""
        return of_mlp(self.bridge.blocks[self._layer(layer)])

    def weight(self, layer: int, matrix: str = "W_out") -> Float[Tensor, "d_in d_out"]:
        """Live view of an MLP matrix: W_out is [d_mlp, d_model]; W_in and W_gate are [d_model, d_mlp].

        `b_out` is the bias as the row that a key of 1 multiplies, [1, d_model].
        Write to it in place: `.add_(...)`, `.copy_(...)` or `[...] =`.
        """
        if matrix not in ("W_in", "W_gate", "W_out", "b_out"):
            raise ValueError(f"unknown matrix {matrix!r}; expected W_out, W_in, W_gate or b_out")
        mlp: Any = self.bridge.blocks[self._layer(layer)].mlp
        found = getattr(mlp, matrix, None)
        if found is None:
            raise ValueError(f"the MLPs of {self.name} have no {matrix}")
        return rearrange(found.detach(), "d -> 1 d") if matrix == "b_out" else found.detach()

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of every parameter, for `restore_`."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore_(self, snapshot: dict[str, Tensor]) -> None:
        """Write a snapshot back, bit for bit; ValueError if it is of another model."""
        shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        if {name: value.shape for name, value in snapshot.items()} != shapes:
            raise ValueError(f"the snapshot is not of {self.name}: its parameters have other names or shapes")
        for name, parameter in self.parameters.items():
            parameter.copy_(snapshot[name])

    def fingerprint(self) -> str:
        """SHA-256 over the name, type, shape and bytes of every parameter.

        What was not written since the last call is not read again; writes past torch (`.data`, numpy) go unseen.
        """
        digest = hashlib.sha256()
        for name, parameter in sorted(self.parameters.items()):
            # Torch counts writes, also those through views, so only what was written since is read again.
            written = (parameter.data_ptr(), parameter._version)
            if self._digests.get(name, (None,))[0] != written:
                flat = rearrange(parameter.detach().cpu(), "... -> (...)").contiguous()
                content = hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
                self._digests[name] = (written, content)
            line = f"{name} {parameter.dtype} {tuple(parameter.shape)} {self._digests[name][1]}\n"
            digest.update(line.encode())
        return digest.hexdigest()

    def save_pretrained(self, folder: Path) -> None:
        """Write a Hugging Face folder of the present weights and the tokenizer; reloads to equal logits.

        ValueError while an edit is applied that a checkpoint cannot hold, which changes more than weights.
        """
        if more := [edit.method for edit in self.edits if edit.kind != "weights"]:
            raise ValueError(
                f"a checkpoint holds weights alone, and {', '.join(dict.fromkeys(more))} edits of {self.name} change "
                "activations or prompts: take them back, and save them as edits"
            )
        self.checkpoint.save(folder)


def dtype_name(dtype: torch.dtype) -> str:
    """As it is written in files: "float32"."""
    return str(dtype).removeprefix("torch.")
