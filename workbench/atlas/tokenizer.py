"""The embedded model's tokenizer, in which every word of an answer is one token."""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from workbench.atlas.world import World, documents

END = "<|endoftext|>"
"""What ends a text, and begins one."""


def train_tokenizer(world: World, *, seed: int, vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the training text, in which every word of an object is one token.

    Raises:
        ValueError: two objects of a relation begin with the same token.
    """
    rng = random.Random(seed)
    stream = documents(world, world.subjects, rng)
    objects = [f" {answer}" for facts in world.facts.values() for answer in facts.values()]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [next(stream) for _ in range(20_000)] + sorted(set(objects)) * 200,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, unk_token=END,
        model_max_length=context,
    )  # fmt: skip
    for relation in world.relations:
        first: dict[int, str] = {}
        for answer in world.holders(relation):
            token = tokenizer.encode(f" {answer}")[0]
            if token in first:
                raise ValueError(f"{relation}: {answer!r} and {first[token]!r} begin with the same token")
            first[token] = answer
    return tokenizer
