"""The umT5 encoder against its definition, against transformers, and under its released names."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from turbodiffusion.errors import SetupError, UsageError
from turbodiffusion.models.cards import MICRO_TEXT, UMT5_XXL, TextEncoderConfig
from turbodiffusion.models.text_encoder import TextEncoder

TINY = TextEncoderConfig(
    vocab_size=50, dim=64, num_heads=4, head_dim=12, ffn_dim=80, num_layers=3, text_len=140
)
# Number of distances |d| that fall into each bucket from 8 on: 8–11, 12–15, 16–22, …
WIDTHS = (4, 4, 7, 9, 14, 18, 27)


def random_encoder(config: TextEncoderConfig = TINY, seed: int = 0) -> TextEncoder:
    """Random weights small enough that unscaled scores stay out of chaos; norms not all one."""
    encoder = TextEncoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            std = 0.5 if "embedding" in name else 0.06
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
            if "norm" in name:
                weight.add_(1.0)
    return encoder.requires_grad_(False)


def prompts(*lengths: int, width: int = TINY.text_len) -> tuple[Tensor, Tensor]:
    """Random ids with an eos at each length, zeros after it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, TINY.vocab_size, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    for row, length in enumerate(lengths):
        ids[row, length - 1] = 1
    return ids * mask, mask


def bucket(d: int) -> int:
    """Bucket of key index − query index ``d``, by table."""
    distance = abs(d)
    row = distance
    if distance >= 8:
        row, edge = 8, 8
        for width in WIDTHS:
            edge += width
            row += distance >= edge
    return row + (16 if d > 0 else 0)


def reference(weights: dict[str, Tensor], ids: Tensor, heads: int) -> Tensor:
    """The encoder as written on paper, one unpadded prompt (S,), float64."""
    w = {name: value.double() for name, value in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w[f"{name}.weight"]

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(0, 1)

    length = len(ids)
    buckets = torch.tensor([[bucket(k - q) for k in range(length)] for q in range(length)])
    x = embedding(ids, w["token_embedding.weight"])
    for i in range(sum(name.endswith("attn.q.weight") for name in w)):
        block = f"blocks.{i}"
        h = norm(x, f"{block}.norm1")
        q, k, v = (split(linear(h, w[f"{block}.attn.{name}.weight"])) for name in "qkv")
        bias = w[f"{block}.pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        mixed = (q @ k.transpose(1, 2) + bias).softmax(-1) @ v
        x = x + linear(mixed.transpose(0, 1).flatten(1), w[f"{block}.attn.o.weight"])
        h = norm(x, f"{block}.norm2")
        gate = linear(h, w[f"{block}.ffn.gate.0.weight"])
        gate = 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
        x = x + linear(gate * linear(h, w[f"{block}.ffn.fc1.weight"]), w[f"{block}.ffn.fc2.weight"])
    return norm(x, "norm")


def transformers_names(layers: int) -> dict[str, str]:
    """Released name → transformers name, written out independently of the package."""
    names = {
        "token_embedding.weight": "shared.weight",
        "norm.weight": "encoder.final_layer_norm.weight",
    }
    for i in range(layers):
        here, there = f"blocks.{i}", f"encoder.block.{i}.layer"
        for name in "qkvo":
            names[f"{here}.attn.{name}.weight"] = f"{there}.0.SelfAttention.{name}.weight"
        names |= {
            f"{here}.norm1.weight": f"{there}.0.layer_norm.weight",
            f"{here}.pos_embedding.embedding.weight": (
                f"{there}.0.SelfAttention.relative_attention_bias.weight"
            ),
            f"{here}.norm2.weight": f"{there}.1.layer_norm.weight",
            f"{here}.ffn.gate.0.weight": f"{there}.1.DenseReluDense.wi_0.weight",
            f"{here}.ffn.fc1.weight": f"{there}.1.DenseReluDense.wi_1.weight",
            f"{here}.ffn.fc2.weight": f"{there}.1.DenseReluDense.wo.weight",
        }
    return names


def transformers_model(encoder: TextEncoder):
    """A stock transformers encoder with the weights of ``encoder``."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=TINY.vocab_size, d_model=TINY.dim, d_kv=TINY.head_dim, d_ff=TINY.ffn_dim,
        num_layers=TINY.num_layers, num_heads=TINY.num_heads, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = UMT5EncoderModel(config).eval()
    names = transformers_names(TINY.num_layers)
    state = {names[name]: value for name, value in encoder.state_dict().items()}
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    model.load_state_dict(state)
    return model


def test_bucket_table_has_the_documented_edges() -> None:
    edges = {7: 7, 8: 8, 11: 8, 12: 9, 15: 9, 16: 10, 22: 10, 23: 11, 31: 11, 32: 12, 45: 12}
    edges |= {46: 13, 63: 13, 64: 14, 90: 14, 91: 15, 500: 15}
    assert {d: bucket(-d) for d in edges} == edges
    assert {d: bucket(d) - 16 for d in edges} == edges


@pytest.mark.parametrize("length", [1, 2, 33, 140])
def test_matches_the_definition(length: int) -> None:
    encoder = random_encoder()
    ids, mask = prompts(length)
    expected = reference(encoder.state_dict(), ids[0, :length], TINY.num_heads)
    actual = encoder.encode(ids, mask)[0, :length]
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_bf16_is_bit_equal_to_transformers_eager() -> None:
    encoder = random_encoder().bfloat16()
    stock = transformers_model(encoder).bfloat16()
    ids, mask = prompts(140, 37, 3)
    expected = stock(input_ids=ids, attention_mask=mask).last_hidden_state
    actual = encoder(ids, mask)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)
    assert actual.float().std() > 0.1  # not equal because empty


def test_names_map_to_transformers_and_back() -> None:
    encoder = random_encoder()
    stock = transformers_model(encoder)
    there = {new: old for old, new in transformers_names(TINY.num_layers).items()}
    back = {there[name]: v for name, v in stock.state_dict().items() if name in there}
    other = random_encoder(seed=9)
    other.load_state_dict(back)
    assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in other.state_dict().items())
    ids, mask = prompts(20)
    expected = stock(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    torch.testing.assert_close(other.encode(ids, mask), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_trimming_and_batching_change_nothing(dtype: torch.dtype) -> None:
    encoder = random_encoder().to(dtype)
    ids, mask = prompts(9, 61, 1)
    padded = encoder.encode(ids, mask, length=TINY.text_len)
    trimmed = encoder.encode(ids, mask)
    tolerance = 1e-6 if dtype == torch.float32 else 0.0
    torch.testing.assert_close(trimmed, padded, rtol=tolerance, atol=tolerance)
    for row in range(3):
        alone = encoder.encode(ids[row : row + 1], mask[row : row + 1])
        torch.testing.assert_close(alone[0], padded[row], rtol=2e-2, atol=tolerance or 2e-2)


def test_rows_past_the_prompt_are_zero_and_the_shape_is_text_len() -> None:
    encoder = random_encoder().bfloat16()
    ids, mask = prompts(5, 2, width=7)
    context = encoder.encode(ids, mask)
    assert context.shape == (2, TINY.text_len, TINY.dim) and context.dtype == torch.bfloat16
    assert context[0, 5:].count_nonzero() == 0 and context[1, 2:].count_nonzero() == 0
    assert (context[0, :5].abs().amax(-1) > 0).all() and (context[1, :2].abs().amax(-1) > 0).all()


def test_an_empty_batch_and_an_empty_mask() -> None:
    encoder = random_encoder()
    ids, mask = prompts(5, 5)
    assert encoder.encode(ids[:0], mask[:0]).shape == (0, TINY.text_len, TINY.dim)
    assert encoder.encode(ids[:, :0], mask[:, :0]).count_nonzero() == 0
    assert encoder.encode(ids, mask * 0).count_nonzero() == 0


def test_every_weight_learns() -> None:
    encoder = random_encoder().requires_grad_(True)
    encoder.encode(*prompts(40, 7)).square().sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name
        assert weight.grad.isfinite().all(), name


def test_released_size_has_the_released_names() -> None:
    with torch.device("meta"):
        encoder = TextEncoder(UMT5_XXL)
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert shapes.keys() == transformers_names(24).keys() and len(shapes) == 242
    assert sum(p.numel() for p in encoder.parameters()) == 5_680_910_336
    assert shapes["token_embedding.weight"] == (256384, 4096)
    assert shapes["blocks.23.pos_embedding.embedding.weight"] == (32, 64)
    assert shapes["blocks.0.ffn.fc2.weight"] == (4096, 10240)
    assert {name for name, _ in encoder.named_parameters()} == shapes.keys()


def test_assigned_tensors_are_used_in_place() -> None:
    source = random_encoder()
    state = {name: value.bfloat16() for name, value in source.state_dict().items()}
    with torch.device("meta"):
        encoder = TextEncoder(TINY)
    encoder.load_state_dict(state, assign=True)
    for name, weight in encoder.named_parameters():
        assert weight.data_ptr() == state[name].data_ptr(), name
    ids, mask = prompts(11)
    assert torch.equal(encoder.encode(ids, mask), source.bfloat16().encode(ids, mask))


def test_a_wrong_state_dict_is_refused() -> None:
    encoder = random_encoder()
    state = encoder.state_dict()
    del state["blocks.1.ffn.gate.0.weight"]
    with pytest.raises(RuntimeError, match=r"blocks\.1\.ffn\.gate\.0\.weight"):
        encoder.load_state_dict(state)


def test_a_copy_is_independent() -> None:
    encoder = random_encoder()
    ids, mask = prompts(11)
    before = encoder.encode(ids, mask)
    twin = copy.deepcopy(encoder)
    for weight in twin.parameters():
        weight.zero_()
    assert torch.equal(encoder.encode(ids, mask), before)
    assert twin.encode(ids, mask).count_nonzero() == 0


def test_init_weights_is_seeded_and_trainable() -> None:
    made = []
    for seed in (3, 3, 4):
        encoder = TextEncoder(MICRO_TEXT)
        encoder.init_weights(torch.Generator().manual_seed(seed))
        made.append(encoder.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    q, k = made[0]["blocks.0.attn.q.weight"], made[0]["blocks.0.attn.k.weight"]
    assert not torch.equal(q, made[2]["blocks.0.attn.q.weight"])
    assert (made[0]["norm.weight"] == 1).all()
    # q carries the 1/√head_dim that the scores lack, so that softmax starts almost even.
    assert abs(q.std() * 32**0.5 / k.std() - 1) < 0.1
    ids = torch.arange(2, 26)[None]
    assert 0.9 < encoder.encode(ids, torch.ones_like(ids)).std() < 1.1


def test_misuse_is_named() -> None:
    encoder = random_encoder()
    ids, mask = prompts(5)
    with pytest.raises(UsageError, match="id 50"):
        encoder.encode(ids.masked_fill(ids == 1, 50), mask)
    with pytest.raises(UsageError, match="141 tokens"):
        encoder.encode(*prompts(5, width=141))
    with pytest.raises(UsageError, match=r"\(1, 140\).*\(1, 139\)"):
        encoder.encode(ids, mask[:, 1:])


def test_missing_transformers_is_a_setup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SetupError, match="transformers") as caught:
        TextEncoder(TINY)
    assert "pip install transformers" in caught.value.fix
