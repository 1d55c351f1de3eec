"""The tokenizer file of the embedded models: umT5's kind, with a few hundred pieces.

The embedded text encoder knows the closed language of the procedural world. Its ``tokenizer.json``
has the build of umT5's (Unigram pieces behind a "▁" word mark, byte fallback, eos appended by the
file itself), so the code that reads the released file reads this one too:

====================  ======================================================================
ids                   pieces
====================  ======================================================================
0, 1, 2               ``<pad>``, ``</s>``, ``<unk>``
3 … 258               one piece a byte, ``<0x00>`` … ``<0xFF>``
259                   the bare word mark ``▁``
260 …                 punctuation, then the words as ``▁word``
up to 383             unused rows, so that all embedded models have tables of one size
====================  ======================================================================

Capital letters are folded here, in the file: the cleaning of prompts keeps case. What is not a
piece becomes bytes, so no prompt is lost, but only words of the list mean something to the network.
"""

from __future__ import annotations

from pathlib import Path

from turbodiffusion.errors import UsageError

VOCAB_SIZE = 384
PUNCTUATION = (",", ".")
_MARK = "▁"


def pieces(words: list[str]) -> list[str]:
    """The ``VOCAB_SIZE`` pieces in the order of their ids.

    Raises:
        UsageError: a word occurs twice, is not one lower-case word, or there are too many.
    """
    for word in words:
        if not word or word != word.lower() or len(word.split()) != 1 or word in PUNCTUATION:
            raise UsageError(
                "vocabulary-word",
                f"{word!r} cannot be a vocabulary entry; it must be one lower-case word.",
                "Split it into words, or drop it.",
            )
    if len(set(words)) != len(words):
        twice = sorted({word for word in words if words.count(word) > 1})
        raise UsageError(
            "vocabulary-twice", f"These words are listed twice: {', '.join(twice)}.", "List once."
        )
    table = ["<pad>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), _MARK]
    table += [*PUNCTUATION, *(_MARK + word for word in words)]
    if len(table) > VOCAB_SIZE:
        raise UsageError(
            "vocabulary-size",
            f"{len(words)} words need {len(table)} pieces, the table holds {VOCAB_SIZE}.",
            f"Drop {len(table) - VOCAB_SIZE} or more.",
        )
    return table + [f"<unused{row}>" for row in range(len(table), VOCAB_SIZE)]


def build_tokenizer(words: list[str], path: Path | str) -> Path:
    """Write the tokenizer of ``words`` to ``path`` and return it.

    The same words give the same bytes. Read the file with
    :meth:`turbodiffusion.models.text_encoder.Tokenizer.from_file`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    # All pieces cost the same, so the best segmentation is the one with the fewest: a listed word
    # is always one token. The library makes characters that no piece covers dearer still.
    model = models.Unigram([(piece, -1.0) for piece in pieces(words)], unk_id=2, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_MARK, prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement=_MARK, prepend_scheme="always")]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<pad>", "</s>", "<unk>")]
    )
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    path = Path(path)
    path.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    return path
