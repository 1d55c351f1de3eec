"""The umT5 text encoder of Wan and its tokenizer.

A prompt becomes ``text_len`` rows that the DiT attends to: one row a token, then exact zeros. Two
classes do it. :class:`Tokenizer` cleans the text the way the released networks were trained
(mojibake, HTML escapes, white space) and turns it into ids with the ``tokenizers`` package, from a
file, never from the network. :class:`TextEncoder` is the encoder half of umT5: RMS norms, attention
without score scaling but with a relative position bias of its own in every layer, a gated
feed-forward, no biases.

The mathematics is that of ``transformers.UMT5EncoderModel`` with its "eager" attention, the only
one that repeats the released bf16 roundings bit for bit; the parameters are hung under the released
names (``blocks.0.attn.q.weight``), so that a checkpoint loads without renaming.

Shapes: B prompts, S tokens, D the encoder's width.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbodiffusion.errors import SetupError, UsageError, WeightsError
from turbodiffusion.models.cards import TextEncoderConfig

PAD_ID = 0
EOS_ID = 1


def _build_stack(config: TextEncoderConfig) -> Any:
    """The ``UMT5Stack`` of transformers for ``config``, on the current default device."""
    try:
        from transformers import UMT5Config, UMT5EncoderModel
    except ImportError as cause:
        raise SetupError(
            "text-transformers-missing",
            f"The text encoder needs the package transformers ({cause}).",
            "Install it: pip install transformers",
        ) from cause
    settings = UMT5Config(
        vocab_size=config.vocab_size,
        d_model=config.dim,
        d_kv=config.head_dim,
        d_ff=config.ffn_dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        relative_attention_num_buckets=config.num_buckets,
        relative_attention_max_distance=config.max_distance,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=config.eps,
        dropout_rate=0.0,
        use_cache=False,
    )
    # Set on the config and not as an argument: releases before 5 know no other kind for umT5 and
    # take no argument for it.
    settings._attn_implementation = "eager"
    # The stack alone: its embedding table is the only one, where the whole model has a tied second.
    return UMT5EncoderModel(settings).encoder


def _released_block(block: Any) -> nn.ModuleDict:
    """The leaf modules of one transformers block under their released names."""
    attention, feed_forward = block.layer[0], block.layer[1]
    inner, gated = attention.SelfAttention, feed_forward.DenseReluDense
    return nn.ModuleDict(
        {
            "norm1": attention.layer_norm,
            "attn": nn.ModuleDict({name: getattr(inner, name) for name in "qkvo"}),
            "pos_embedding": nn.ModuleDict({"embedding": inner.relative_attention_bias}),
            "norm2": feed_forward.layer_norm,
            "ffn": nn.ModuleDict(
                {"gate": nn.ModuleDict({"0": gated.wi_0}), "fc1": gated.wi_1, "fc2": gated.wo}
            ),
        }
    )


class TextEncoder(nn.Module):
    """umT5 encoder whose parameters carry the released names.

    Args:
        config: sizes; ``config.text_len`` is the number of rows that :meth:`encode` returns.

    The released file has 242 tensors, bf16. Build under ``torch.device("meta")`` and call
    ``load_state_dict(..., assign=True)`` to use memory-mapped tensors as they are.
    """

    _stack: Any

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        stack = _build_stack(config)
        self.token_embedding = stack.embed_tokens
        self.blocks = nn.ModuleList(_released_block(block) for block in stack.block)
        self.norm = stack.final_layer_norm
        # The stack shares every leaf module with the tree above and only does the computing. It
        # stays unregistered, otherwise each parameter would have two names.
        object.__setattr__(self, "_stack", stack)

    @property
    def layers(self) -> list[nn.Module]:
        """The modules that are called one after the other, for whoever moves their weights."""
        return list(self._stack.block)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Random weights to train from, T5's scheme: N(0, 1) embeddings, N(0, 1/fan_in) linears.

        Scores are not divided by √head_dim, so ``q`` takes that factor into its weights. The
        numbers are drawn on the generator's device (the CPU without one).
        """
        c = self.config
        stds = {"q": (c.dim * c.head_dim) ** -0.5, "embedding": c.dim**-0.5, "token_embedding": 1.0}
        device = generator.device if generator is not None else torch.device("cpu")
        for name, weight in self.named_parameters():
            leaf = name.split(".")[-2]
            if "norm" in leaf:
                weight.fill_(1.0)
                continue
            std = stds.get(leaf, weight.shape[1] ** -0.5)
            values = torch.randn(weight.shape, generator=generator, device=device) * std
            weight.copy_(values)

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Hidden states (B, S, D) of every position, those of the padding included."""
        return self._stack(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state

    def encode(self, ids_BS: Tensor, mask_BS: Tensor, *, length: int | None = None) -> Tensor:
        """Prompt rows for the DiT: (B, text_len, D) in the weights' dtype, zero past each prompt.

        Args:
            ids_BS: int64 token ids, padded on the right, on the encoder's device.
            mask_BS: 1 for a token, 0 for padding, same shape.
            length: compute only the first ``length`` positions. Default: the longest prompt of the
                batch, which reads the mask back to the host; a training loop that must not wait
                for the device passes its own bound.

        Leaving padding out changes no value: masked keys get weight zero.

        Raises:
            UsageError: ids and mask do not fit each other, the config or the vocabulary.
        """
        self._check(ids_BS, mask_BS)
        if not ids_BS.numel():
            shape = (len(ids_BS), self.config.text_len, self.config.dim)
            return self.token_embedding.weight.new_zeros(shape)
        if length is None:
            length = max(1, int(mask_BS.sum(dim=1).max()))
            self._check_ids(ids_BS)
        mask_BS = mask_BS[:, :length]
        hidden_BSD = self(ids_BS[:, :length], mask_BS)
        hidden_BSD = hidden_BSD.masked_fill(mask_BS.unsqueeze(-1) == 0, 0.0)
        return nn.functional.pad(hidden_BSD, (0, 0, 0, self.config.text_len - hidden_BSD.shape[1]))

    def _check(self, ids_BS: Tensor, mask_BS: Tensor) -> None:
        if ids_BS.dim() != 2 or ids_BS.shape != mask_BS.shape:
            raise UsageError(
                "text-shape",
                f"Ids have shape {tuple(ids_BS.shape)} and the mask {tuple(mask_BS.shape)}; both "
                "must be (prompts, tokens).",
                "Pass the two tensors that Tokenizer returns.",
            )
        if ids_BS.shape[1] > self.config.text_len:
            raise UsageError(
                "text-too-long",
                f"{ids_BS.shape[1]} tokens were given, this encoder takes {self.config.text_len}.",
                f"Make the tokenizer with text_len={self.config.text_len}.",
            )

    def _check_ids(self, ids_BS: Tensor) -> None:
        highest = int(ids_BS.max())
        if highest >= self.config.vocab_size:
            raise UsageError(
                "text-tokenizer-mismatch",
                f"The tokenizer gives id {highest}, the text encoder knows ids up to "
                f"{self.config.vocab_size - 1}.",
                "Use the tokenizer.json that belongs to this text encoder.",
            )


def clean(text: str) -> str:
    """``text`` as the released networks saw it in training.

    In order: ftfy repairs mojibake, quotes and ligatures; HTML entities are resolved twice; runs of
    white space become one space; the ends are stripped. Case and punctuation stay.

    Raises:
        SetupError: the text needs ftfy and it is not installed.
    """
    # Nothing in printable ASCII without an entity is ftfy's business, so English prompts and
    # training captions are spared its import and its time.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = _fix(text)
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip()


def _fix(text: str) -> str:
    try:
        import ftfy
    except ImportError as cause:
        raise SetupError(
            "text-ftfy-missing",
            "The prompt has characters that must be normalised, which needs the package ftfy.",
            "Install it: pip install ftfy",
        ) from cause
    return ftfy.fix_text(text)


class Tokenizer:
    """Prompts to ids: cleaned, ended with eos, cut and padded on the right to ``text_len``.

    Make one with :meth:`from_file`; the file is a ``tokenizer.json`` such as Wan repositories ship
    under ``google/umt5-xxl/``.
    """

    def __init__(self, backend: Any, text_len: int) -> None:
        self.text_len = text_len
        backend.no_padding()
        # The limit counts the eos, which the file's post-processor appends.
        backend.enable_truncation(max_length=text_len)
        self._backend = backend

    @classmethod
    def from_file(cls, path: Path | str, text_len: int) -> Tokenizer:
        """Read ``path`` without touching the network.

        Raises:
            WeightsError: the file is missing, not a tokenizer, or not of umT5's kind.
            SetupError: the package tokenizers is not installed.
        """
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError as cause:
            raise SetupError(
                "text-tokenizers-missing",
                "Reading a prompt needs the package tokenizers.",
                "Install it: pip install tokenizers",
            ) from cause
        fix = "Give the tokenizer.json of the model (google/umt5-xxl/tokenizer.json for Wan)."
        path = Path(path)
        if not path.is_file():
            raise WeightsError("tokenizer-missing", f"There is no tokenizer file {path}.", fix)
        try:
            # Read here and not in the library: it cannot open every path that Python can.
            backend = Backend.from_str(path.read_text(encoding="utf-8"))
        except Exception as cause:  # the library raises bare Exception
            raise WeightsError(
                "tokenizer-invalid", f"{path} is not a tokenizer file: {cause}", fix
            ) from cause
        made = cls(backend, text_len)
        if backend.encode("").ids != [EOS_ID] or backend.id_to_token(PAD_ID) is None:
            raise WeightsError(
                "tokenizer-kind",
                f"{path} does not end a text with id {EOS_ID} (eos) as umT5's tokenizer does.",
                fix,
            )
        return made

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, int64 (len(texts), text_len): pad 0, eos 1, mask 1 on tokens and eos."""
        encodings = self._backend.encode_batch([clean(text) for text in texts])
        ids_BS = torch.full((len(texts), self.text_len), PAD_ID, dtype=torch.int64)
        mask_BS = torch.zeros_like(ids_BS)
        for row, encoding in enumerate(encodings):
            tokens = torch.tensor(encoding.ids, dtype=torch.int64)
            ids_BS[row, : len(tokens)] = tokens
            mask_BS[row, : len(tokens)] = 1
        return ids_BS, mask_BS
