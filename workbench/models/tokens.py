"""Texts to padded tokens with character offsets, and back, by a checkpoint's own tokenizer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.machine.shown import Shown
from workbench.records.facts import encodable
from workbench.records.joining import UNSPACED

_BETWEEN = re.compile(rf"(?<=[{UNSPACED}]) (?=[{UNSPACED}])")
"""Spaces that decoders of word pieces put between all tokens, where the writing has none."""


@dataclass(frozen=True, kw_only=True)
class Tokens(Shown):
    """A padded batch of tokenised texts."""

    ids: Int[Tensor, "batch pos"]
    """Token ids; a padded place holds id 0."""
    mask: Int[Tensor, "batch pos"]
    """1 where a token is real, 0 where it is padding."""
    offsets: tuple[tuple[tuple[int, int], ...], ...]
    """(start, end) characters of each real token of each row; a prepended BOS is (0, 0)."""
    starts: Int[Tensor, " batch"]
    """Padded index of each row's first real token (0 unless padded on the left)."""
    lasts: Int[Tensor, " batch"]
    """Padded index of each row's last real token."""
    prompt_ends: Int[Tensor, " batch"]
    """Padded index of the last token of each row's prompt: its last real token, unless an answer follows."""

    def with_prompts(self, characters: Sequence[int]) -> "Tokens":
        """The same, of texts whose prompts are so many characters long and that an answer follows."""
        counts = [prompt_tokens(offsets, length) for offsets, length in zip(self.offsets, characters, strict=True)]
        return replace(self, prompt_ends=self.starts + torch.tensor(counts, device=self.starts.device) - 1)


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """A tokenised text, not yet padded."""

    text: str
    """The text; empty for a piece of one."""
    ids: tuple[int, ...]
    """Its token ids, with what the tokenizer puts in front."""
    offsets: tuple[tuple[int, int], ...]
    """(start, end) characters of each token; of a prepended BOS (0, 0)."""


class TextTokenizer:
    """A fast tokenizer under one rule: what it prepends itself stays (BOS on Llama), EOS is never added."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, name: str, n_ctx: int, n_rows: int, device: torch.device
    ) -> None:
        """ValueError for a tokenizer that puts one token twice in front of every text; `n_rows` tokens are embedded."""
        self.tokenizer, self.name, self.n_ctx, self.n_rows, self.device = tokenizer, name, n_ctx, n_rows, device
        example: Any = tokenizer("a", return_special_tokens_mask=True)
        special = example["special_tokens_mask"]
        self._prefix: list[int] = example["input_ids"][: special.index(0)] if 0 in special else []
        twice = next((a for a, b in zip(self._prefix, self._prefix[1:], strict=False) if a == b), None)
        if twice is not None:
            raise ValueError(
                f"the tokenizer of {name} puts {self._token(twice)!r} twice in front of every text: take it out of the "
                'post-processor in tokenizer.json, or set "add_bos_token" to false in tokenizer_config.json'
            )
        fast: Any = tokenizer
        self._word_pieces = type(fast.backend_tokenizer.decoder).__name__ == "WordPiece"
        self._anchor: int = example["input_ids"][special.index(0)] if 0 in special else 0

    def encode(self, texts: Sequence[str]) -> list[TokenRow]:
        """Tokenise; ValueError for no texts, or one that is empty, longer than the context, or unfit for the model."""
        _check(texts)
        if "" in texts:
            raise ValueError(f"text {list(texts).index('')} is empty; give at least one character")
        rows = self._rows(texts)
        unknown: Any = self.tokenizer.unk_token_id
        special = set(self.tokenizer.all_special_ids) - {unknown}
        for row in rows:
            own = row.ids[len(self._prefix) :]
            if not own:
                raise ValueError(f"the tokenizer of {self.name} makes no token of {row.text!r}; write it otherwise")
            if self._prefix and own[0] == self._prefix[-1]:
                raise ValueError(
                    f"the text {row.text[:60]!r} begins with {self._token(own[0])!r}, which the tokenizer of "
                    f"{self.name} puts in front by itself; leave it out"
                )
            if special.issuperset(own):
                raise ValueError(
                    f"the text {row.text[:60]!r} has nothing but special tokens of {self.name}, "
                    f"{self._token(own[0])!r}; give a word"
                )
            if len(row.ids) > self.n_ctx:
                raise ValueError(
                    f"a text has {len(row.ids)} tokens, more than the context of {self.n_ctx} of {self.name}; "
                    f"shorten {row.text[:60]!r}"
                )
        return rows

    def check_known(self, text: str) -> None:
        """ValueError for a text of which the tokenizer makes nothing but its token for what it does not know."""
        unknown: Any = self.tokenizer.unk_token_id
        ids = self._rows([text])[0].ids[len(self._prefix) :]
        if unknown in ids and not any(token != unknown and self.decode([token]).strip() for token in ids):
            raise ValueError(f"the tokenizer of {self.name} has no token for {text!r}: write it otherwise")

    def pieces(self, texts: Sequence[str], longest: int) -> list[TokenRow]:
        """Tokenise plain text, every text cut into pieces of at most `longest` tokens, each begun like a text.

        ValueError for no texts, or one with lone surrogates.
        """
        _check(texts)
        step = longest - len(self._prefix)
        return [
            TokenRow(
                text="",
                ids=(*self._prefix, *ids[start : start + step]),
                offsets=((0, 0),) * len(self._prefix) + row.offsets[len(self._prefix) :][start : start + step],
            )
            for row in self._rows(texts)
            for ids in [row.ids[len(self._prefix) :]]
            for start in range(0, len(ids), step)
        ]

    def beginning(self) -> TokenRow:
        """The tokens that begin a text of the model's own: what the tokenizer puts in front, else BOS, EOS or "The"."""
        tokens = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        known = [token for token in tokens if isinstance(token, int) and token < self.n_rows]
        ids = self._prefix or known[:1]
        return TokenRow(text="", ids=tuple(ids), offsets=((0, 0),) * len(ids)) if ids else self._rows(["The"])[0]

    def _token(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def _rows(self, texts: Sequence[str]) -> list[TokenRow]:
        encoded: Any = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        prefix, rows = tuple(self._prefix), []
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if lacking := next((token for token in (*prefix, *ids) if token >= self.n_rows), None):
                raise ValueError(
                    f"the text {text[:60]!r} has the token {self._token(lacking)!r} ({lacking}), but {self.name} "
                    f"embeds only {self.n_rows} tokens: write it otherwise, or load a checkpoint that embeds this token"
                )
            spans = tuple((int(start), int(end)) for start, end in offsets)
            rows.append(TokenRow(text=text, ids=prefix + tuple(ids), offsets=((0, 0),) * len(prefix) + spans))
        return rows

    def pad(
        self, rows: Sequence[TokenRow], *, padding_side: Literal["left", "right"], prompts: Sequence[int] | None = None
    ) -> Tokens:
        """Rows as one batch; `prompts` are the numbers of tokens of each that are its prompt, all unless given."""
        lengths = torch.tensor([len(row.ids) for row in rows])
        longest = int(lengths.max())
        starts = longest - lengths if padding_side == "left" else torch.zeros_like(lengths)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            span = slice(int(starts[index]), int(starts[index]) + len(row.ids))
            ids[index, span] = torch.tensor(row.ids)
            mask[index, span] = 1
        return Tokens(
            ids=ids.to(self.device),
            mask=mask.to(self.device),
            offsets=tuple(row.offsets for row in rows),
            starts=starts.to(self.device),
            lasts=(starts + lengths - 1).to(self.device),
            prompt_ends=(starts + (lengths if prompts is None else torch.tensor(prompts)) - 1).to(self.device),
        )

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Token ids as text, spaces as they were."""
        return self.tokenizer.decode(  # pyright: ignore[reportReturnType]
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def strings(self, ids: Int[Tensor, " pos"]) -> list[str]:
        """Each token alone as text, its leading space kept."""
        # Some decoders drop the space in front of a text's first token: decode each behind another token.
        before = self.decode([self._anchor])
        return [self.decode([self._anchor, token])[len(before) :] for token in ids.tolist()]

    def continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """The text that new tokens add to the prompt's, special tokens left out."""
        before = self.decode(prompt, skip_special_tokens=True)
        text = self.decode([*prompt, *new], skip_special_tokens=True)[len(before) :]
        return _BETWEEN.sub("", text) if self._word_pieces else text


def _check(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not texts:
        raise ValueError(f"expected a list of one or more texts, got {texts!r}")
    if odd := next((text for text in texts if not encodable(text)), None):
        raise ValueError(f"expected texts without lone surrogates, which UTF-8 cannot hold, got {odd[:60]!r}")


def prompt_tokens(offsets: Sequence[tuple[int, int]], characters: int) -> int:
    """How many tokens of a text belong to its prompt of so many characters: those before the first that ends beyond it.

    So a token that holds the end of the prompt and the beginning of the answer is the answer's.
    """
    return next((index for index, (_, end) in enumerate(offsets) if end > characters), len(offsets))


def answer_start(offsets: Sequence[tuple[int, int]], prompt: str) -> int:
    """Index of the first token of the answer that follows a prompt; ValueError if either has no token of its own."""
    first = prompt_tokens(offsets, len(prompt))
    # What the tokenizer puts in front has no characters, and is no part of the prompt.
    begun = next((index for index, (_, end) in enumerate(offsets) if end > 0), 0)
    if first in (begun, len(offsets)):
        what = "prompt" if first == begun else "target"
        raise ValueError(f"the {what} has no token of its own: lengthen it, in the text after {prompt!r}")
    return first


def visible(token: str) -> str:
    """A token's text without the space around it; white space alone as its escape."""
    return token.strip() or repr(token)[1:-1].replace(" ", "␣") or "∅"
