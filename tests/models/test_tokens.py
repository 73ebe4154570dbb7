"""Tokens, offsets and BOS as the checkpoint's own tokenizer makes them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from known_scores import scored
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from workbench.editors.setup.contexts import sample_contexts
from workbench.editors.shared.second_moments import second_moments
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.models.tokens import TextTokenizer, answer_start, prompt_tokens
from workbench.records.facts import Fact, token_span
from workbench.records.joining import starts_with_target
from workbench.tracing.known import known_answers


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
    assert generate(model, ["the cat"], max_new_tokens=1)[0].startswith(" ")


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

    with pytest.raises(ValueError, match="without lone surrogates"):
        tiny_gpt2.tokenize(["fine", "\ud800"])


def word_pieces() -> TextTokenizer:
    """A tokenizer like those of Chinese GPT-2s: words and characters, a token for all else, spaces on the way back."""
    words = ["[UNK]", "rome", "is", "in", *"中国的首都是罗马"]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    return TextTokenizer(fast, name="pieces", n_ctx=64, n_rows=99, device=torch.device("cpu"))


def test_word_pieces_are_put_together_as_they_are_written() -> None:
    text = word_pieces()
    prompt, answer, english = (text.encode([each])[0].ids for each in ("中国的首都是", "罗马", "rome is in"))
    assert starts_with_target(text.continuation(prompt, answer), "罗马")
    assert text.continuation(english[:1], english[1:]) == " is in"


def test_what_the_tokenizer_cannot_write_is_refused(tiny_gpt2: Model) -> None:
    text = word_pieces()
    text.check_known("rome")
    text.check_known("zagreb is")
    with pytest.raises(ValueError, match="the tokenizer of pieces has no token for 'zagreb': write it otherwise"):
        text.check_known("zagreb")
    tiny_gpt2.text.check_known("Zagreb")


def altered(source: Path, folder: Path, change) -> Path:
    """A checkpoint with a changed tokenizer.json."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_tokenizer_that_adds_bos_twice_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def twice(content: dict) -> None:
        single = content["post_processor"]["single"]
        single.insert(0, single[0])

    with pytest.raises(ValueError, match=r"puts '<s>' twice in front of every text: .*add_bos_token"):
        load_model(str(altered(checkpoints["llama"], tmp_path / "twice", twice)), device="cpu")


def test_a_token_without_an_embedding_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["gpt2"], tmp_path / "more")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zyx"])
    tokenizer.save_pretrained(folder)
    model = load_model(str(folder), device="cpu")
    generate(model, ["Rome"], max_new_tokens=1)
    fact = Fact(template="{} zyx", subject="Rome", object="Rome")
    for fails in (
        lambda: model.tokenize(["In zyx"]),
        lambda: generate(model, ["In zyx"], max_new_tokens=1),
        lambda: scored(model, ["Rome"], ["zyx"]),
        lambda: score_targets(model, [("Rome", "zyx")]),
        lambda: known_answers(model, [fact]),
        lambda: second_moments(model, [0], ["In Rome", "In zyx"]),
    ):
        with pytest.raises(ValueError, match=r"the token 'zyx' \(340\), but .* embeds only 340 tokens"):
            fails()


@pytest.mark.parametrize("text", ["<s>", "</s>", "</s></s>", "</s><s>"])
def test_a_text_of_special_tokens_is_refused(family_model: Model, text: str) -> None:
    with pytest.raises(ValueError, match=r"nothing but special tokens|begins with '<s>'"):
        family_model.tokenize(["Rome", text])


def test_a_text_may_bring_the_bos_that_the_tokenizer_does_not_add(family: str, family_model: Model) -> None:
    if family == "llama":
        with pytest.raises(ValueError, match=r"begins with '<s>', which the tokenizer of .* leave it out"):
            family_model.tokenize(["<s>In Rome"])
    else:
        assert family_model.tokenize(["<s>In Rome"]).ids[0, 0] == 0


def test_a_text_that_normalises_to_nothing_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def strip(content: dict) -> None:
        content["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}

    for family in ("gpt2", "llama"):
        model = load_model(str(altered(checkpoints[family], tmp_path / family, strip)), device="cpu")
        with pytest.raises(ValueError, match=r"makes no token of '\\u2003 '"):
            model.tokenize(["Rome", "\u2003 "])


def test_sampled_contexts_begin_with_one_bos(family_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[int]] = []
    step = Model.step

    def watched(self, ids, which, cache):
        if cache is None:
            begun.extend(ids.tolist())
        return step(self, ids, which, cache)

    monkeypatch.setattr(Model, "step", watched)
    sample_contexts(family_model, lengths=((4, 3),), generator=torch.Generator().manual_seed(0))
    assert begun == [[0]] * 3


@pytest.mark.parametrize(
    ("offsets", "first"),
    [
        (((0, 2), (2, 7), (7, 12)), 2),
        (((0, 0), (0, 2), (2, 7), (8, 12)), 3),  # after a BOS; the space belongs to no token
        (((0, 2), (2, 9), (9, 12)), 1),  # one token holds the end of the prompt and the answer's beginning
        (((0, 7), (7, 8), (7, 8), (8, 12)), 1),  # a character in several tokens
    ],
)
def test_an_answer_begins_with_the_first_token_that_ends_beyond_the_prompt(
    offsets: tuple[tuple[int, int], ...], first: int
) -> None:
    assert prompt_tokens(offsets, 7) == answer_start(offsets, "In Rome") == first
    assert token_span(offsets, (7, 12))[0] == first


@pytest.mark.parametrize(
    ("offsets", "what"), [(((0, 12),), "prompt"), (((0, 0), (0, 12)), "prompt"), (((0, 2), (2, 7)), "target")]
)
def test_prompt_and_answer_need_a_token_each(offsets: tuple[tuple[int, int], ...], what: str) -> None:
    with pytest.raises(ValueError, match=f"the {what} has no token of its own: lengthen it, .* 'In Rome'"):
        answer_start(offsets, "In Rome")
