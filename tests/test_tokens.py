"""Tokens, offsets and BOS as the checkpoint's own tokenizer makes them."""

import shutil
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from workbench.models import Model, load_model


def test_bos_as_the_tokenizer_does_and_never_eos(family: str, family_model: Model) -> None:
    tokens = family_model.tokenize(["Rome"])
    plain = family_model.tokenizer("Rome", add_special_tokens=False)["input_ids"]
    assert tokens.ids[0].tolist() == ([0, *plain] if family == "llama" else plain)
    assert tokens.offsets[0][0] == ((0, 0) if family == "llama" else tokens.offsets[0][0])
    assert family != "llama" or family_model.tokenizer("Rome")["input_ids"][-1] == 1


def test_offsets_spell_the_text(family_model: Model) -> None:
    text = "The Eiffel Tower stands in Paris"
    tokens = family_model.tokenize(["In Rome", text], padding_side="left")
    strings = [text[start:end] for start, end in tokens.offsets[1]]
    assert "".join(strings) == text
    found = family_model.token_strings(tokens.ids[1])
    assert found[1:] == strings[1:] and len(found) == tokens.ids.shape[1]


def test_token_strings_keep_a_space_that_the_decoder_drops(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    model = load_model(str(sentencepiece_like(checkpoints["llama"], tmp_path)), device="cpu")
    tokens = model.tokenize(["the cat sat"])
    assert model.token_strings(tokens.ids[0])[2:] == [" cat", " sat"]
    assert tokens.offsets[0][0] == (0, 0)
    assert model.generate(["the cat"], max_new_tokens=1)[0].startswith(" ")


def sentencepiece_like(llama: Path, folder: Path) -> Path:
    """The Llama checkpoint with a tokenizer that writes a space as a part of the word behind it."""
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    words = ["<s>", "</s>", "<unk>", "▁the", "▁cat", "▁sat", "▁a"]
    vocabulary = {word: index for index, word in enumerate(words + [f"▁w{i}" for i in range(340 - len(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return folder


def test_bad_texts(tiny_gpt2: Model) -> None:
    for texts, message in (([], "one or more texts"), ("abc", "list"), (["a", ""], "text 1 is empty")):
        with pytest.raises(ValueError, match=message):
            tiny_gpt2.tokenize(texts)
    with pytest.raises(ValueError, match=r"\d+ tokens, more than the context of 64 .*shorten 'Paris Paris"):
        tiny_gpt2.tokenize(["Paris " * 80])
