"""A text a line, blank ones left out; files that are missing, empty or malformed, and a hub out of reach, say so."""

import random
from pathlib import Path

import pytest

from workbench.records import texts
from workbench.records.texts import cut, read_texts


def test_lines_of_a_text_file_without_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("Paris is in France.\n\n  東京 is in Japan. \n", encoding="utf-8")
    assert read_texts(str(path)) == ["Paris is in France.", "東京 is in Japan."]
    assert read_texts(str(path), limit=1) == ["Paris is in France."]


@pytest.mark.parametrize("end", ["", "\n"])
def test_lines_longer_than_a_text_are_cut_as_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(texts, "LONGEST", 20)
    draw, path = random.Random(0), tmp_path / "corpus.txt"
    for _ in range(300):
        lines = [
            "".join(draw.choices("aé東 ", (5, 2, 2, 1), k=draw.randrange(90))) for _ in range(draw.randrange(1, 5))
        ]
        path.write_text("\n".join(line.rstrip() for line in lines) + end, encoding="utf-8")
        wanted = [piece for line in lines for piece in cut(line.strip())]
        assert all(len(piece) <= 20 for piece in wanted)
        if wanted:
            assert read_texts(str(path)) == wanted


def test_more_than_fits_is_left_unread_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MOST", 8)
    (tmp_path / "corpus.txt").write_text("one two\nthree\nfour\n")
    with pytest.warns(UserWarning, match=r"corpus\.txt: no more than its first 8 characters are used"):
        assert read_texts(str(tmp_path / "corpus.txt")) == ["one two"]


def test_jsonl_names_a_malformed_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "one"}\n{"text": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"corpus\.jsonl: line 2: expected"):
        read_texts(str(path))
    assert read_texts(str(path), limit=1) == ["one"]
    for odd in ('{"text": "\\ud800"}', "[" * 5000):
        path.write_text(odd, encoding="utf-8")
        with pytest.raises(ValueError, match=r"corpus\.jsonl: line 1: expected"):
            read_texts(str(path))


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.JSONL", "corpus.txt"])
def test_a_byte_order_mark_and_blank_lines_are_passed_over_and_other_encodings_named(tmp_path: Path, name: str) -> None:
    path, text = tmp_path / name, "café" if name.endswith("txt") else '{"text": "café"}'
    path.write_text(f"{text}\n\n", encoding="utf-8-sig")
    assert read_texts(str(path)) == ["café"]
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=f"{name}: expected text in UTF-8"):
        read_texts(str(path))


def test_missing_and_empty_files_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"give a \.txt or \.jsonl file"):
        read_texts(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no text"):
        read_texts(str(tmp_path / "empty.txt"))


def test_an_unreachable_hub_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"cannot fetch Salesforce/wikitext .* --text"):
        read_texts("wikitext")
