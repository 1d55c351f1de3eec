"""Sizes from the cards, and costs against figures worked out by hand from the definitions."""

from __future__ import annotations

import pytest

from turbodiffusion.bench import shapes
from turbodiffusion.bench.shapes import Geometry
from turbodiffusion.errors import UsageError

RELEASED = Geometry(topk=0.1, block_q=128, block_k=64)
TOKENS = {"1.3b-480p": 32_760, "14b-480p": 32_760, "14b-720p": 75_600}
T = 10**12


def test_sizes_come_from_the_cards():
    found = shapes.shapes()
    assert {name: s.tokens for name, s in found.items()} == TOKENS
    small, large = found["1.3b-480p"], found["14b-720p"]
    assert (small.dim, small.ffn_dim, small.heads, small.layers) == (1536, 8960, 12, 30)
    assert (large.dim, large.ffn_dim, large.heads, large.layers) == (5120, 13824, 40, 40)
    assert small.head_dim == large.head_dim == 128 and large.grid == (21, 45, 80)


@pytest.mark.parametrize(
    ("geometry", "at_480p", "at_720p"),
    [
        (RELEASED, 51 * 64, 118 * 64),
        (Geometry(0.15, 128, 64), 76 * 64, 177 * 64),
        (Geometry(0.1, 64, 128), 25 * 128, 59 * 128),
        (Geometry(1e-6, 64, 128), 128, 128),
    ],
)
def test_kept_keys(geometry, at_480p, at_720p):
    assert geometry.kept_keys(32_760) == at_480p
    assert geometry.kept_keys(75_600) == at_720p


@pytest.mark.parametrize(
    ("name", "eight_bit", "dense"),
    # TFLOP per block: everything of the original network; 8-bit work of the accelerated one.
    [("1.3b-480p", 3.39, 9.43), ("14b-480p", 21.82, 41.96), ("14b-720p", 56.93, 163.08)],
)
def test_operations_of_a_block(name, eight_bit, dense):
    s = shapes.shapes()[name]
    linears, cross = shapes.linear_flops(s), shapes.cross_flops(s)
    assert (linears + shapes.dense_flops(s) + cross) / T == pytest.approx(dense, abs=0.005)
    assert (linears + shapes.sparse_flops(s, RELEASED)) / T == pytest.approx(eight_bit, abs=0.005)


def test_operations_by_hand():
    """1.3B at 480p: L 32,760, d 1536, f 8960, S 512, D 128; 256 query and 512 key blocks."""
    s = shapes.shapes()["1.3b-480p"]
    assert shapes.linear_flops(s) == 12 * 32760 * 1536**2 + 4 * 512 * 1536**2 + (
        4 * 32760 * 1536 * 8960
    )  # fmt: skip
    assert shapes.dense_flops(s) == 6_593_848_934_400  # 4 · 1,073,217,600 · 1536
    assert shapes.cross_flops(s) == 4 * 32760 * 512 * 1536
    assert shapes.sparse_flops(s, RELEASED) == 4 * 32760 * 3264 * 1536
    assert shapes.branch_flops(s) == 6 * 32760 * 1536 * 128
    assert shapes.map_flops(s, RELEASED) == 2 * 256 * 512 * 1536
    assert shapes.embedding_flops(s) == 256 * 32760 * 1536


@pytest.mark.parametrize(
    ("name", "bytes_gb", "seconds"),
    [("1.3b-480p", 3.48, 0.078), ("14b-480p", 10.71, 0.611), ("14b-720p", 24.22, 1.58)],
)
def test_floor(name, bytes_gb, seconds):
    """The published floors, less the text keys and values, which are computed once a prompt."""
    s = shapes.shapes()[name]
    rates: dict[shapes.Rate, float] = {"bf16": 790e12, "8-bit": 1580e12, "copy": 4.3e12}
    floor = shapes.floor_seconds(s, RELEASED, rates)
    assert seconds * 0.985 < floor < seconds
    steps = shapes.block_steps(s, RELEASED)
    assert bytes_gb * 0.98 < sum(step.bytes for step in steps) / 1e9 < bytes_gb
    eight = sum(step.flops for step in steps if step.rate == "8-bit")
    text = 4 * s.text * s.dim**2
    assert eight == shapes.linear_flops(s) - text + shapes.sparse_flops(s, RELEASED)


def test_a_step_waits_for_the_slower_side():
    rates: dict[shapes.Rate, float] = {"bf16": 10.0, "8-bit": 20.0, "copy": 2.0}
    assert shapes.Step("product", "8-bit", 100, 4).seconds(rates) == 5.0
    assert shapes.Step("product", "bf16", 100, 40).seconds(rates) == 20.0
    assert shapes.Step("norm", "copy", 0, 4).seconds(rates) == 2.0


def test_a_reduced_shape_keeps_its_proportions():
    s = shapes.shapes()["14b-720p"].reduce((8, 32, 32), 2)
    assert (s.tokens, s.dim, s.head_dim, s.layers) == (8192, 256, 128, 2)
    assert s.ffn_dim % 128 == 0 and s.ffn_dim / s.dim == pytest.approx(13824 / 5120, rel=0.1)
    assert s.reduced == "8,192 tokens, 2 heads, 2 layers"


def test_names():
    assert [s.name for s in shapes.named([])] == list(TOKENS)
    assert [s.name for s in shapes.named(["14B-720p", "1.3b-480p"])] == ["1.3b-480p", "14b-720p"]
    with pytest.raises(UsageError, match=r"'5b'.*1\.3b-480p, 14b-480p, 14b-720p"):
        shapes.named(["5b"])
