"""Where a subject lies in text and in tokens, under tokenizers that treat spaces and bytes differently."""

import dataclasses

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from workbench.records.facts import EditRequest, Fact, Probe, Record, subject_characters, token_span

CASES = {
    "start": ("{} stands in", "The Eiffel Tower"),
    "middle": ("In which city does the {} stand? In", "Eiffel Tower"),
    "end of the prompt": ("A tower in Paris is the {}", "Eiffel Tower"),
    "subject elsewhere too": ("Paris Hilton lives far from {}", "Paris"),
    "punctuation": ("({}), the tower, is in", "Eiffel Tower"),
    "japanese": ("{}は日本の", "東京タワー"),
    "japanese in the middle": ("日本の首都、{}は", "東京"),
    "arabic": ("عاصمة مصر هي {} و", "القاهرة"),
    "accents": ("The city {} lies in", "Besançon"),
    "other braces": ("In the set {{1, 2}} of {} we find", "Vinson Massif"),
}
TEXTS = [template.replace("{}", subject) for template, subject in CASES.values()]


def byte_level(*, trim_offsets: bool, add_prefix_space: bool = False, vocab_size: int = 420) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(vocab_size=250, show_progress=False))
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False))
    return tokenizer


TOKENIZERS = {
    "space merged into the token": byte_level(trim_offsets=False),
    "space left out of the offsets": byte_level(trim_offsets=True),
    "a space put in front": byte_level(trim_offsets=True, add_prefix_space=True),
    "bytes alone": byte_level(trim_offsets=False, vocab_size=256),
    "metaspace": metaspace(),
    "words": words(),
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize(("template", "subject"), CASES.values(), ids=CASES)
def test_the_span_covers_the_subject_and_no_more(tokenizer: Tokenizer, template: str, subject: str) -> None:
    text = template.replace("{}", subject)
    start, end = subject_characters(template, subject)
    assert text[start:end] == subject
    offsets = tokenizer.encode(text).offsets
    first, past = token_span(offsets, (start, end))
    assert 0 <= first < past <= len(offsets)
    assert offsets[first][0] <= start and offsets[past - 1][1] >= end
    for index, (a, b) in enumerate(offsets):
        assert (first <= index < past) == bool(set(range(a, b)) & set(range(start, end)))


def test_the_span_in_known_tokens() -> None:
    gpt2 = [(0, 3), (3, 10), (10, 16), (16, 23)]  # "The", " Eiffel", " Tower", " stands"
    assert token_span(gpt2, (4, 16)) == (1, 3)
    trimmed = [(0, 3), (4, 10), (11, 16), (17, 23)]
    assert token_span(trimmed, (4, 16)) == (1, 3)
    with_bos = [(0, 0), (0, 3), (3, 10), (10, 16)]
    assert token_span(with_bos, (0, 3)) == (1, 2), "BOS is not a part of a subject at the start"
    three_bytes_a_character = [(0, 1), (0, 1), (0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert token_span(three_bytes_a_character, (0, 2)) == (0, 6)
    space_alone = [(0, 2), (2, 3), (3, 5)]  # "In", " ", "東京"
    assert token_span(space_alone, (3, 5)) == (2, 3)
    merged_with_what_follows = [
        (0, 3),
        (3, 8),
        (8, 9),
    ]  # the token (3, 8) ends one character behind the subject
    assert token_span(merged_with_what_follows, (4, 7)) == (1, 2)
    with pytest.raises(ValueError, match="no token overlaps characters 9 to 12"):
        token_span(trimmed[:1], (9, 12))


def test_a_subject_that_is_in_the_template_too_is_found_by_the_place() -> None:
    assert subject_characters("Paris Hilton lives far from {}", "Paris") == (28, 33)


def test_other_braces_stay() -> None:
    fact = Fact(subject="{x}", template="The set {{a}} has the member {} in it:", object="x")
    assert fact.prompt == "The set {{a}} has the member {x} in it:"
    start, end = subject_characters(fact.template, fact.subject)
    assert fact.prompt[start:end] == "{x}"


@pytest.mark.parametrize("template", ["The capital of", "{} and {}", ""])
def test_a_template_has_one_place(template: str) -> None:
    with pytest.raises(ValueError, match=r"template needs exactly one \{\}, got "):
        Fact(subject="France", template=template, object="Paris")
    with pytest.raises(ValueError, match=r"template needs exactly one \{\}"):
        EditRequest(subject="France", template=template, target_new="Rome")
    with pytest.raises(ValueError, match=r"template needs exactly one \{\}"):
        subject_characters(template, "France")


@pytest.mark.parametrize("blank", ["", "  "])
def test_nothing_is_blank(blank: str) -> None:
    good = {"template": "The capital of {} is", "subject": "France", "target_new": "Rome"}
    for name in ("subject", "target_new", "target_true"):
        with pytest.raises(ValueError, match=f"{name} needs a non-empty text"):
            EditRequest(**{**good, name: blank})
    with pytest.raises(ValueError, match="object needs a non-empty text"):
        Fact(subject="France", template="The capital of {} is", object=blank)
    with pytest.raises(ValueError, match="prompt needs"):
        Probe(prompt=blank, targets_new=("a",))
    with pytest.raises(ValueError, match="target needs"):
        Probe(prompt="a", targets_new=("a",), targets_true=(blank,))
    with pytest.raises(ValueError, match="at least one answer"):
        Probe(prompt="a", targets_new=())


def test_a_request_states_a_fact() -> None:
    request = EditRequest(
        template="The capital of {} is",
        subject="France",
        target_new="Rome",
        target_true="Paris",
        relation="capital",
    )
    assert request.prompt == "The capital of France is" == request.fact.prompt
    assert request.fact.object == "Paris" and request.fact.relation == "capital"
    with pytest.raises(ValueError, match="'France' has no target_true"):
        _ = dataclasses.replace(request, target_true=None).fact


def test_values_are_frozen_and_equal_by_content() -> None:
    request = EditRequest(template="{} is", subject="a", target_new="b")
    record = Record(case_id=1, request=request)
    assert record == Record(case_id=1, request=request) and hash(record) == hash(dataclasses.replace(record))
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.case_id = 2  # pyright: ignore[reportAttributeAccessIssue]
