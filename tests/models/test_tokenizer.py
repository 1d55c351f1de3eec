"""Cleaning of prompts and the tokenizer file, both without a network."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
import torch

from turbodiffusion.errors import SetupError, WeightsError
from turbodiffusion.mini.vocabulary import build_tokenizer
from turbodiffusion.models.text_encoder import Tokenizer, clean

WORDS = ["a", "red", "circle", "moving", "left"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return build_tokenizer(WORDS, tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a &amp;amp; b\n\n c\t d ", "a & b c d"),
        ("“q” â€œx", '"q" "x'),
        ("ﬁne", "fine"),
        ("A Cat, sat.", "A Cat, sat."),
        ("a\u3000b\u00a0c", "a b c"),
        ("&lt;b&gt; 1 < 2", "<b> 1 < 2"),
        ("<b> &amp;amp; c", "<b> & c"),
        ("", ""),
        (" \t\n ", ""),
        ("日本語 のねこ", "日本語 のねこ"),
    ],
    ids=["entities", "ftfy", "ligature", "kept", "space", "tags", "twice", "none", "blank", "ja"],
)  # fmt: skip
def test_cleaning(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_plain_text_is_what_ftfy_would_leave() -> None:
    import html

    import ftfy

    printable = "".join(chr(code) for code in range(32, 127) if chr(code) != "&")
    for text in (printable, "it's `quoted'' -- 100%", "a <b>&lt;</b>"):
        twice = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert clean(text) == " ".join(twice.split())


def test_missing_ftfy_is_named_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean(" a red  circle ") == "a red circle"
    with pytest.raises(SetupError, match="ftfy") as caught:
        clean("“quoted”")
    assert "pip install ftfy" in caught.value.fix


def test_ids_mask_and_padding(file: Path) -> None:
    ids, mask = Tokenizer.from_file(file, 8)(["a red circle", "", "a red circle moving left a red"])
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.tolist() == [
        [262, 263, 264, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [262, 263, 264, 265, 266, 262, 263, 1],
    ]
    assert mask.sum(1).tolist() == [4, 1, 8]


def test_truncation_keeps_the_eos(file: Path) -> None:
    ids, mask = Tokenizer.from_file(file, 3)(["a red circle moving left"])
    assert ids.tolist() == [[262, 263, 1]] and mask.all()


def test_no_prompts_give_no_rows(file: Path) -> None:
    ids, mask = Tokenizer.from_file(file, 3)([])
    assert ids.shape == mask.shape == (0, 3)


def test_prompts_are_cleaned(file: Path) -> None:
    ids, _ = Tokenizer.from_file(file, 8)(["a red circle", "  a\nred   circle "])
    assert torch.equal(ids[0], ids[1])


def test_settings_inside_the_file_do_not_matter(file: Path) -> None:
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(file))
    backend.enable_truncation(2)
    backend.enable_padding(length=5, direction="left")
    backend.save(str(file))
    ids, _ = Tokenizer.from_file(file, 6)(["a red circle"])
    assert ids.tolist() == [[262, 263, 264, 1, 0, 0]]


def test_a_folder_with_spaces_and_letters_of_other_scripts(tmp_path: Path) -> None:
    folder = tmp_path / "mö dels ü 模型"
    folder.mkdir()
    file = build_tokenizer(WORDS, folder / "tokenizer.json")
    assert Tokenizer.from_file(file, 4).vocab_size == 384


def test_the_network_is_never_touched(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    Tokenizer.from_file(file, 8)(["a red circle"])
    with pytest.raises(WeightsError):
        Tokenizer.from_file("google/umt5-xxl", 8)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "tokenizer-missing"),
        ("", "tokenizer-invalid"),
        ("<!DOCTYPE html><title>Not found</title>", "tokenizer-invalid"),
        ('{"version": "1.0"}', "tokenizer-invalid"),
        (b"\xff\xfe\x00broken", "tokenizer-invalid"),
    ],
    ids=["missing", "empty", "html", "other-json", "bytes"],
)
def test_a_bad_file_is_an_error(tmp_path: Path, content: str | bytes | None, code: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WeightsError, match=r"tokenizer\.json") as caught:
        Tokenizer.from_file(path, 8)
    assert caught.value.code == code


def test_a_tokenizer_without_eos_is_of_another_kind(file: Path) -> None:
    table = json.loads(file.read_text(encoding="utf-8"))
    table["post_processor"] = None
    file.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(WeightsError) as caught:
        Tokenizer.from_file(file, 8)
    assert caught.value.code == "tokenizer-kind"
