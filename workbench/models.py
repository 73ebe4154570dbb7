"""The one adapter over TransformerLens: tokens, hook sites, weights, snapshots, scores, generation, export.

Every quirk of a model family is met here and in `checkpoints`, nowhere else. The weights stay raw, so that an
edit made through `Model.weight` is what `Model.save_pretrained` writes.
"""

import hashlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from workbench.batching import BUDGET, Footprint, consecutive
from workbench.checkpoints import ATLAS as ATLAS
from workbench.checkpoints import Checkpoint, load_checkpoint
from workbench.contribution import Contribution, of_mlp
from workbench.generation import Sampler, continue_tokens
from workbench.joining import join
from workbench.memory import keep_freed_memory
from workbench.tokens import TextTokenizer, TokenRow, Tokens

if TYPE_CHECKING:
    from workbench.blocks import Blocks

Hook = tuple[str, Callable]
"""A hook's name and `fn(tensor, hook) -> tensor | None`."""

SITES = ("resid_post", "mlp_out", "attn_out")
"""The sites that causal tracing restores."""

_HOOK_NAMES = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_key": "blocks.{}.mlp.hook_post",
    "mlp_write": "blocks.{}.mlp.out.hook_out",
}


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
    """Ledger of `workbench.edits`: the edits applied now, oldest first."""
    originals: dict = field(default_factory=dict)
    """Ledger of `workbench.edits`: untouched copies of the matrices that edits have changed."""
    _digests: dict = field(default_factory=dict)
    """Parameter -> (state of its memory, hash of its content), for `fingerprint`."""

    def __post_init__(self) -> None:
        self.n_layers: int = self.bridge.cfg.n_layers
        self.d_model: int = self.bridge.cfg.d_model
        self.n_ctx: int = self.bridge.cfg.n_ctx
        self.d_mlp: int = self.weight(0).shape[0]
        hf: Any = self.bridge.original_model
        self._text = TextTokenizer(
            self.tokenizer,
            name=self.name,
            n_ctx=self.n_ctx,
            n_rows=len(hf.get_input_embeddings().weight),
            device=self.device,
        )
        self._can_keep = "logits_to_keep" in inspect.signature(hf.forward).parameters
        configured = getattr(getattr(hf, "generation_config", None), "eos_token_id", None)
        ends = [*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id]
        self._ends: list[int] = sorted({end for end in ends if isinstance(end, int)})

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.n_layers} layers x {self.d_model}, {self.dtype}, {self.device})"

    @property
    def bridge(self) -> TransformerBridge:
        """The TransformerLens model."""
        return self.checkpoint.bridge

    @cached_property
    def blocks(self) -> "Blocks":
        """The model's blocks, part by part; BlocksError for an architecture they do not reproduce."""
        from workbench.blocks import Blocks

        return Blocks(self)

    @cached_property
    def hook_faults(self) -> dict[str, str]:
        """By site, how it is not what editors take it for (see `hooks_check`); empty for all known families."""
        from workbench.hooks_check import hook_faults

        return hook_faults(self)

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
        return self._text.encode(texts)

    def pad(self, rows: Sequence[TokenRow], *, padding_side: Literal["left", "right"] = "right") -> Tokens:
        """Rows as one batch."""
        return self._text.pad(rows, padding_side=padding_side)

    def pieces(self, texts: Sequence[str], *, keep: int | None) -> list[TokenRow]:
        """Tokenise plain text of any length, cut where it exceeds the context or the memory, with a warning then.

        `keep` says how many positions will be unembedded (None: all); each piece is begun like a text of its own.
        """
        longest = self.footprint.longest(self.n_ctx, keep=keep, budget=self.memory)
        rows = self._text.pieces(texts, longest)
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
        return self._text.strings(ids)

    # ---- hooks

    def hook_name(self, site: str, layer: int | None = None) -> str:
        """TransformerLens's name of a site.

        `embed` (token embeddings, takes no layer), `resid_pre`, `resid_post`, `attn_out` and `mlp_out` (what is added
        to the residual stream), `mlp_write` (W_out's output; mostly the same as `mlp_out`, see `mlp_contribution`; all
        [batch pos d_model]) and `mlp_key` (what W_out multiplies, [batch pos d_mlp]).
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
        logits = self._run(tokens.ids, tokens.mask, hooks, keep_last)
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
        logits = self._run(tokens.ids, tokens.mask, [*keepers, *hooks], 1, **options)
        return found | ({"logits": logits[:, -1:]} if "logits" in names else {})

    def _run(
        self,
        ids: Tensor,
        mask: Tensor,
        hooks: Sequence[Hook] = (),
        keep_last: int | None = None,
        **options: Any,
    ) -> Any:
        known = self.bridge.hook_dict if hooks else {}
        fired: set[int] = set()

        def watched(index: int, function: Callable) -> Callable:
            def call(tensor: Tensor, hook: Any) -> Tensor | None:
                fired.add(index)
                return function(tensor, hook=hook)

            return call

        for name, _ in hooks:
            if name not in known:
                raise ValueError(f"{self.name} has no hook {name!r}; Model.hook_name gives the names of the sites")
        options.setdefault("use_cache", False)
        if keep_last is not None and self._can_keep:
            options["logits_to_keep"] = keep_last
        watching: list[Any] = [(name, watched(index, function)) for index, (name, function) in enumerate(hooks)]
        output = self.bridge.run_with_hooks(ids, fwd_hooks=watching, attention_mask=mask, **options)
        silent = sorted({name for index, (name, _) in enumerate(hooks) if index not in fired})
        if silent:
            raise RuntimeError(f"hooks that never fired on {self.name}: {', '.join(silent)}")
        return output

    def _step(self, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the last position, and the key-value cache; the mask covers the cached positions too."""
        options = {"return_type": "logits_and_cache", "use_past_kv_cache": True, "past_key_values": cache}
        return self._run(ids, mask, keep_last=1, use_cache=True, **options)

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
        """Write a Hugging Face folder of the present weights and the tokenizer; reloads to equal logits."""
        self.checkpoint.save(folder)

    # ---- scores and text

    def target_log_probs(
        self, prompts: Sequence[str], targets: Sequence[str], *, separator: str | None = None, batch_size: int = 64
    ) -> list[Float[Tensor, " target"]]:
        """Teacher-forced log-probability of each token of each target after its prompt, in float32.

        The text is `join(prompt, target, separator)`; the target's tokens are those that end beyond the prompt.
        """
        found: dict[int, Tensor] = {}
        for index, logits, ids in self._teacher_forced(prompts, targets, separator, batch_size):
            log_probs = logits.float().log_softmax(dim=-1)
            found[index] = log_probs.gather(-1, ids[:, None])[:, 0]
        return [found[index] for index in range(len(prompts))]

    def greedy_matches(
        self, prompts: Sequence[str], targets: Sequence[str], *, separator: str | None = None, batch_size: int = 64
    ) -> list[bool]:
        """Whether, teacher-forced, every token of the target is the most likely one."""
        found: dict[int, bool] = {}
        for index, logits, ids in self._teacher_forced(prompts, targets, separator, batch_size):
            found[index] = bool((logits.argmax(dim=-1) == ids).all())
        return [found[index] for index in range(len(prompts))]

    def _teacher_forced(
        self, prompts: Sequence[str], targets: Sequence[str], separator: str | None, batch_size: int
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (index, logits [target vocab] that predict the target, target ids [target]), in any order."""
        if len(prompts) != len(targets):
            raise ValueError(f"got {len(prompts)} prompts but {len(targets)} targets; give one target a prompt")
        texts = [join(prompt, target, separator) for prompt, target in zip(prompts, targets, strict=True)]
        if not texts:
            return
        rows = self.encode(texts)
        counts = [sum(end > len(prompt) for _, end in row.offsets) for prompt, row in zip(prompts, rows, strict=True)]
        for row, count in zip(rows, counts, strict=True):
            if count in (0, len(row.ids)):
                raise ValueError(f"the {'prompt' if count else 'target'} has no token of its own in {row.text!r}")
        for batch in self.batches(rows, batch_size, keep=[count + 1 for count in counts]):
            tokens = self.pad([rows[index] for index in batch], padding_side="left")
            # Targets end where left-padded rows end, so only the last positions need to be unembedded.
            with torch.no_grad():
                logits = self.logits(tokens, keep_last=max(counts[index] for index in batch) + 1)
            for place, index in enumerate(batch):
                count = counts[index]
                yield index, logits[place, -count - 1 : -1], tokens.ids[place, -count:]

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int = 64,
    ) -> list[str]:
        """Continue each prompt; returns the continuations alone, cut at the end-of-text token.

        Greedy at temperature 0; sampled from `generator` (on the model's device) otherwise.
        ValueError if prompt and continuation together do not fit into the context.
        """
        sampler = Sampler(temperature=temperature, top_k=top_k, generator=generator)
        return self._continue(self.encode(prompts) if prompts else [], max_new_tokens, sampler, batch_size)

    def generate_unprompted(
        self, count: int, *, max_new_tokens: int, top_k: int | None = None, generator: torch.Generator
    ) -> list[str]:
        """Texts that the model makes up, sampled at temperature 1 after nothing but the token that begins a text."""
        sampler = Sampler(temperature=1.0, top_k=top_k, generator=generator)
        return self._continue([self._text.beginning()] * count, max_new_tokens, sampler, count)

    def _continue(self, rows: Sequence[TokenRow], max_new_tokens: int, sampler: Sampler, batch_size: int) -> list[str]:
        if max_new_tokens < 1:
            raise ValueError(f"expected max_new_tokens >= 1, got {max_new_tokens}")
        found: dict[int, str] = {}
        for batch in self.batches(rows, batch_size, keep=1, new=max_new_tokens):
            tokens = self.pad([rows[index] for index in batch], padding_side="left")
            if tokens.ids.shape[1] + max_new_tokens > self.n_ctx:
                raise ValueError(
                    f"a prompt of {tokens.ids.shape[1]} tokens and {max_new_tokens} new ones do not fit into "
                    f"the context of {self.n_ctx} of {self.name}; lower max_new_tokens or shorten the prompt"
                )
            new = continue_tokens(self._step, tokens, steps=max_new_tokens, sampler=sampler, ends=self._ends)
            for row, index in enumerate(batch):
                prompt = tokens.ids[row, int(tokens.starts[row]) :].tolist()
                found[index] = self._text.continuation(prompt, new[row])
        return [found[index] for index in range(len(rows))]


def load_model(name_or_path: str, *, device: str = "auto", dtype: torch.dtype | None = torch.float32) -> Model:
    """Load "atlas", a local Hugging Face folder, or a model of the Hugging Face hub, for reading and editing.

    Raw weights in `dtype` (None: that of the checkpoint's weights), evaluation mode, gradients off, eager attention.
    ValueError for a model that cannot be had or has no fast tokenizer.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f'device {device!r} is not available here; give "cpu" or "auto"')
    if device == "cpu":
        keep_freed_memory()
    checkpoint = load_checkpoint(name_or_path, device=device, dtype=dtype)
    one = next(iter(checkpoint.parameters.values()))
    return Model(name=name_or_path, checkpoint=checkpoint, device=one.device, dtype=one.dtype)
