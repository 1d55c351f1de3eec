"""What is measured is right: the reference rows, every row's error, share and rivals."""

from __future__ import annotations

import math

import pytest
import torch

from turbodiffusion.bench.cases import Case, Contest, Error, Row, Setting, compare, measure
from turbodiffusion.bench.check import BOUNDS, GRIDS, cases_at, check
from turbodiffusion.bench.reference import Rows, dense_rows, sla_rows
from turbodiffusion.bench.run import choose_cases, geometry_of
from turbodiffusion.bench.shapes import Geometry, Rate, shapes
from turbodiffusion.ops.attention import naive as dense
from turbodiffusion.ops.sla import naive, select_blocks

CPU = torch.device("cpu")
RATES: dict[Rate, float] = {"bf16": 1e15, "8-bit": 2e15, "copy": 1e13}
SMALL = shapes()["1.3b-480p"].reduce((3, 10, 11), 2)  # 330 tokens: no whole number of blocks
SETTING = Setting(CPU, Geometry(0.3, 64, 32), RATES, seconds=0.0)


def test_reference_rows_are_those_of_the_definition():
    q, k, v = (SETTING.randn(1, SMALL.tokens, 3, 16, seed=i).float() for i in range(3))
    weight, bias = SETTING.randn(16, 16, seed=4).float(), SETTING.randn(16, seed=5).float()
    g = SETTING.geometry
    rows = Rows.pick(SMALL.tokens, 3, g.block_q)
    assert rows.heads == (0, 2) and rows.blocks == (0, 2, 5)
    assert len(rows.tokens) == 64 + 64 + 330 % 64
    blocks = select_blocks(q, k, topk=g.topk, block_q=g.block_q, block_k=g.block_k)
    full = naive.sparse_linear_attention(
        q, k, v, weight, bias, blocks, g.block_q, g.block_k, "softmax"
    )  # fmt: skip
    expected = sla_rows(rows, q, k, v, weight, bias, blocks, g)
    assert compare(rows.of(full), expected, "").l2 < 1e-6
    full = dense.attention(q, k, v)
    assert compare(rows.of(full), dense_rows(rows, q, k, v), "").l2 < 1e-6


def test_a_wrong_map_would_be_seen():
    q, k, v = (SETTING.randn(1, SMALL.tokens, 2, 16, seed=i).float() for i in range(3))
    zero, g = torch.zeros(16, 16), SETTING.geometry
    blocks = select_blocks(q, k, topk=g.topk, block_q=g.block_q, block_k=g.block_k)
    rows = Rows.pick(SMALL.tokens, 2, g.block_q)
    right, wrong = (
        sla_rows(rows, q, k, v, zero, zero[0], b, g) for b in (blocks, (blocks + 1) % 11)
    )
    assert compare(wrong, right, "").l2 > 0.1


@pytest.mark.parametrize("case", choose_cases([], [SMALL]), ids=lambda c: _id(c[0]))
def test_every_row_is_measured_and_right(case: tuple[Case, Geometry]):
    row = measure(case[0], SETTING)
    assert not row.failure, row.failure
    assert row.error is not None and row.error.l2 <= BOUNDS[row.operator]
    assert row.error.cosine > 0.998 and row.error.how
    assert row.milliseconds is not None and row.milliseconds > 0 and row.rounds >= 3
    # These ceilings are beyond any processor: a share above them would be wrong arithmetic.
    assert row.share is not None and 0 < row.share < 0.5
    assert row.rival is not None and row.rival[1] > 0 and not row.absent
    assert row.speedup == pytest.approx(row.rival[1] / row.milliseconds)
    assert (
        row.form in ("naive", "portable", "triton")
        and row.reduced == "330 tokens, 2 heads, 2 layers"
    )


def _id(case: Case) -> str:
    return f"{case.operator} {case.variant}".strip()


def test_rows_cover_the_operators_of_the_issue():
    names = [case.operator for case, _ in choose_cases([], list(shapes().values()))]
    assert set(names) == set(BOUNDS)
    assert names == sorted(names, key=names.index)  # an operator's rows stand together
    variants = {case.variant for case, _ in choose_cases(["int8"], [SMALL])}
    assert variants == {"qkv", "o", "ffn1", "ffn2"}


def test_operations_of_rows_by_hand():
    """1.3B at 480p; a linear counts 2 L K N, SageSLA 4 L n d, FFN of int8 tokens 1 byte each."""
    s = shapes()["1.3b-480p"]
    found = {_id(case): case for case, _ in choose_cases([], [s])}
    assert found["sagesla"].flops == 4 * 32760 * 3264 * 1536 == found["sla"].flops
    assert found["sla_backward"].flops == 2.5 * found["sla"].flops
    assert found["sage"].flops == 4 * 32760**2 * 1536
    assert found["int8 qkv"].flops == 2 * 32760 * 1536 * 3 * 1536
    assert found["int8_fused ffn1"].flops == 2 * 32760 * 1536 * 8960
    assert found["int8_fused ffn1"].bytes == 32760 * (1536 + 8960) + 1536 * 8960
    assert found["int8_fused ffn2"].bytes == 32760 * (8960 + 4 * 1536) + 1536 * 8960
    assert found["layer_norm"].bytes == 4 * 32760 * 1536
    rates: dict[Rate, float] = {"bf16": 790e12, "8-bit": 1580e12, "copy": 4.3e12}
    assert 0.0765 < found["forward"].floor_seconds(rates) < 0.078
    assert found["layer_norm"].floor_seconds(rates) == 4 * 32760 * 1536 / 4.3e12
    assert found["sagesla"].floor_seconds(rates) == found["sagesla"].flops / 1580e12


def test_compare():
    a = torch.tensor([3.0, 4.0])
    assert compare(a, a, "x") == Error(0.0, 0.0, 1.0, "x")
    found = compare(torch.tensor([3.0, 5.0]), a, "")
    assert found.l2 == pytest.approx(0.2) and found.l1 == pytest.approx(1 / 7)
    broken = compare(torch.tensor([3.0, math.nan]), a, "")
    assert broken.l2 == math.inf and broken.cosine == 0.0
    zero = torch.zeros(2)
    assert compare(zero, zero, "") == Error(0.0, 0.0, 1.0, "")
    assert compare(a, zero, "").l2 == 5.0 and compare(zero, a, "") == Error(1.0, 1.0, 0.0, "")


def test_a_row_that_fails_says_why_and_does_not_stop_the_others():
    def no(setting):
        raise RuntimeError("CUDA out of memory")

    row = measure(Case("sla", "", SMALL, "bf16", 1, 1, no), SETTING)
    assert row.failure == "RuntimeError: CUDA out of memory" and row.milliseconds is None


def test_others_are_timed_but_are_no_rivals():
    def make(setting):
        x = torch.ones(3)
        return Contest(lambda: x + 1, {"rival": lambda: x + 2}, lambda: compare(x, x, ""), "",
                       {"less": lambda: x})  # fmt: skip

    row = measure(Case("sla", "", SMALL, "copy", 0, 24, make), SETTING)
    assert list(row.rivals) == ["rival"] and list(row.others) == ["less"]
    assert row.ceiling == "copy" and row.tflops is None and row.gigabytes


def test_geometry_is_the_cards():
    assert geometry_of(SMALL) == Geometry(0.1, 128, 64)


def test_best_rival():
    row = Row("sla", "", "s", "", milliseconds=2.0, rivals={"a": 9.0, "b": 8.0})
    assert row.rival == ("b", 8.0) and row.speedup == 4.0
    assert Row("sla", "", "s", "").speedup is None


def test_the_check_covers_every_row_and_finds_what_is_wrong(monkeypatch):
    s = shapes()["1.3b-480p"]
    names = {case.operator for case, _ in cases_at(s, GRIDS[0])}
    assert names == set(BOUNDS)
    monkeypatch.setattr("turbodiffusion.bench.check.cases_at", _two_cases)
    monkeypatch.setattr("turbodiffusion.bench.check.GRIDS", GRIDS[:1])
    said: list[str] = []
    assert check(CPU, said.append) == 4  # both cases at both sizes of networks
    assert (
        sum(line.startswith("WRONG  rms_norm, 1 tokens, 12 heads, 2 layers") for line in said) == 1
    )
    assert sum("FAILED" in line and "RuntimeError: no kernel" in line for line in said) == 2


def _two_cases(s, grid):
    g = Geometry(0.3, 64, 64)
    s = s.reduce(grid, s.heads)
    one = torch.ones(2)

    def no(setting):
        raise RuntimeError("no kernel")

    wrong = Contest(lambda: one, {}, lambda: compare(1.1 * one, one, ""))
    return [
        (Case("rms_norm", "", s, "copy", 0, 1, lambda x: wrong), g),
        (Case("layer_norm", "", s, "copy", 0, 1, no), g),
    ]
