"""What a model makes of texts before it runs them: tokens, and batches that fit into memory."""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from workbench.models.batching import BUDGET, Footprint, by_passage, consecutive
from workbench.models.checkpoints import Checkpoint
from workbench.models.tokens import TextTokenizer, TokenRow, Tokens


@dataclass(kw_only=True, eq=False, repr=False)
class Reader:
    """A checkpoint that reads texts with its own tokenizer."""

    name: str
    """The name or path it was loaded from."""
    checkpoint: Checkpoint
    """The loaded weights and tokenizer."""
    device: torch.device
    """Where the weights are or, of a model that is spread, its states."""
    dtype: torch.dtype
    """Type of the weights and of the logits."""
    budget: float = BUDGET
    """GiB that a forward pass may hold beside the weights; batches are made smaller to stay below."""
    device_map: str | None = None
    """How it was spread over devices; None for one on a single device."""

    def __post_init__(self) -> None:
        cfg, hf = self.bridge.cfg, self.hf
        self.n_layers: int = cfg.n_layers
        self.d_model: int = cfg.d_model
        n_rows, self.d_embed = hf.get_input_embeddings().weight.shape  # OPT-350m's are projected to d_model
        self.d_vocab: int = cfg.d_vocab
        self.n_ctx: int = cfg.n_ctx
        self.d_mlp: int = self.bridge.blocks[0].mlp.W_out.shape[0]
        self.text = TextTokenizer(
            self.tokenizer,
            name=self.name,
            n_ctx=self.n_ctx,
            n_rows=n_rows,
            device=self.device,
        )
        self.keeps_logits: bool = "logits_to_keep" in inspect.signature(hf.forward).parameters
        configured = getattr(getattr(hf, "generation_config", None), "eos_token_id", None)
        ends = [*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id]
        self.ends: list[int] = sorted({end for end in ends if isinstance(end, int)})

    @property
    def bridge(self) -> TransformerBridge:
        """The TransformerLens model."""
        return self.checkpoint.bridge

    @property
    def hf(self) -> Any:
        """The Hugging Face model beneath it."""
        return self.bridge.original_model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer."""
        return self.checkpoint.tokenizer

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
        longest = self.footprint.longest(self.n_ctx, keep=keep, budget=self.budget)
        rows = self.text.pieces(texts, longest)
        if len(rows) > len(texts):
            what = "its context" if longest == self.n_ctx else f"what fits into {self.budget:g} GiB"
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
        """Indices of the rows in batches, like lengths together, each within `batch_size` rows and the budget; texts
        that begin with the same passage (`batching.by_passage`) are in batches of their own.

        `keep` positions at the end will be unembedded (None: all), of all rows or of each; `new` tokens generated;
        `gradients` taken, and then the rows stay in their order.
        """
        keeps = [keep] * len(rows) if keep is None or isinstance(keep, int) else list(keep)
        size = self.footprint.training_size if gradients else partial(self.footprint.size, cached=new > 0)
        found = []
        for order in [list(range(len(rows)))] if gradients else by_passage([row.ids for row in rows]):
            if not gradients:
                order.sort(key=lambda index: len(rows[index].text or rows[index].ids))
            parts = consecutive(
                [len(rows[index].ids) + new for index in order],
                [keeps[index] for index in order],
                at_most=batch_size,
                fits=lambda count, pos, kept: size(count, pos, keep=kept) <= self.budget * 2**30,
            )
            found += [[order[place] for place in part] for part in parts]
        return found

    @cached_property
    def footprint(self) -> Footprint:
        """What a forward pass holds, by the shape of its batch."""
        return Footprint(
            n_layers=self.n_layers,
            n_heads=self.bridge.cfg.n_heads,
            d_model=self.d_model,
            d_mlp=self.d_mlp,
            d_vocab=self.d_vocab,
            itemsize=self.dtype.itemsize,
            unembeds_all=not self.keeps_logits,
        )

    def token_strings(self, ids: Int[Tensor, " pos"]) -> list[str]:
        """Each token alone as text, its leading space kept."""
        return self.text.strings(ids)
