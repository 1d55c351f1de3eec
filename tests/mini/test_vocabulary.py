"""The embedded models' tokenizer file: one token a word, bytes for the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from turbodiffusion.errors import UsageError
from turbodiffusion.mini.vocabulary import PUNCTUATION, VOCAB_SIZE, build_tokenizer, pieces
from turbodiffusion.mini.world import WORDS
from turbodiffusion.models.cards import MICRO_TEXT, MINI_TEXT
from turbodiffusion.models.text_encoder import Tokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tokenizer(list(WORDS), tmp_path_factory.mktemp("tok") / "tokenizer.json")


def split(file: Path, text: str) -> list[str]:
    backend = Backend.from_file(str(file))
    return backend.encode(text).tokens


def test_ids_have_the_documented_places() -> None:
    table = pieces(["red"])
    assert table[:3] == ["<pad>", "</s>", "<unk>"]
    assert table[3] == "<0x00>" and table[258] == "<0xFF>" and table[259] == "▁"
    assert table[260:263] == [",", ".", "▁red"]
    assert len(table) == len(set(table)) == VOCAB_SIZE == MINI_TEXT.vocab_size
    assert MICRO_TEXT.vocab_size == VOCAB_SIZE


def test_every_word_is_one_token(file: Path) -> None:
    for word in WORDS:
        for text in (word, word.upper(), word.capitalize()):
            assert split(file, text) == ["▁" + word, "</s>"], text


def test_every_pair_and_its_punctuation(file: Path) -> None:
    for left, right in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True):
        expected = ["▁" + left, ",", "▁" + right, ".", "</s>"]
        assert split(file, f"{left}, {right}.") == expected
    assert split(file, " ".join(WORDS)) == [*("▁" + word for word in WORDS), "</s>"]


@pytest.mark.parametrize("text", ["zebra", "é", "日本", "🎈", "x1!", "don't", "qu&x"])
def test_other_words_become_bytes_and_come_back(file: Path, text: str) -> None:
    backend = Backend.from_file(str(file))
    encoding = backend.encode(text)
    assert encoding.tokens == ["▁", *(f"<0x{byte:02X}>" for byte in text.encode()), "</s>"]
    assert 2 not in encoding.ids
    assert backend.decode(encoding.ids) == text


def test_a_longer_word_is_not_its_listed_beginning_alone(file: Path) -> None:
    assert split(file, "redo") == ["▁red", "<0x6F>", "</s>"]
    assert split(file, "redo") != split(file, "red o")


def test_mixed_text_comes_back(file: Path) -> None:
    backend = Backend.from_file(str(file))
    text = "a red zebra, moving left on a navy background."
    assert backend.decode(backend.encode(text).ids) == text
    assert backend.decode(backend.encode("A  RED circle").ids).split() == ["a", "red", "circle"]


def test_the_file_is_of_umt5s_kind_and_reproducible(file: Path, tmp_path: Path) -> None:
    again = build_tokenizer(list(WORDS), tmp_path / "again.json")
    assert again.read_bytes() == file.read_bytes()
    table = json.loads(file.read_text(encoding="utf-8"))
    assert table["model"]["type"] == "Unigram" and table["model"]["byte_fallback"] is True
    assert "Metaspace" in json.dumps(table["pre_tokenizer"])
    assert Tokenizer.from_file(file, MINI_TEXT.text_len).vocab_size == VOCAB_SIZE


def test_word_lists_that_cannot_be_are_refused() -> None:
    room = VOCAB_SIZE - 260 - len(PUNCTUATION)
    assert pieces([f"w{i}" for i in range(room)])[-1] == f"▁w{room - 1}"
    with pytest.raises(UsageError, match="Drop 1 or more"):
        pieces([f"w{i}" for i in range(room + 1)])
    with pytest.raises(UsageError, match="twice: red"):
        pieces(["red", "blue", "red"])
    for word in ("Red", "two words", "", ","):
        with pytest.raises(UsageError, match="lower-case word"):
            pieces([word])
