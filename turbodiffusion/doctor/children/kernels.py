"""Every operator in every form that this machine offers, compared with its definition.

``kernels.py ROOT``. The reference is the ``naive`` form in float32 on the CPU, given the very
numbers that the other form gets, so a difference is that form's own. The int8 product is among
the cases. Printed: relative error ‖a - b‖ / ‖b‖ with its limit, and the time of the second call.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

LIMIT = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 2e-2, "8-bit attention": 5e-2}
"""Relative error allowed by dtype: sums in another order and roundings of the mantissa. Attention
with 8-bit products is compared with exact attention, whose error is its whole point."""


@dataclass(frozen=True)
class Case:
    """A call of an operator, and the exact function it is compared with if that is another one."""

    operator: str
    label: str
    function: Any
    arguments: tuple[Any, ...]
    exact: Any = None


def main(root: str) -> dict[str, Any]:
    sys.path.insert(0, root)
    import torch

    torch.manual_seed(0)
    devices = [(torch.device("cpu"), torch.float32)]
    for index in range(torch.cuda.device_count()):
        modern = torch.cuda.get_device_capability(index) >= (8, 0)
        devices.append((torch.device("cuda", index), torch.bfloat16 if modern else torch.float16))
    rows = []
    for device, dtype in devices:
        for case in cases(torch, dtype):
            rows += compare(torch, device, case)
    wrong = sum(bool(row["error"]) for row in rows)
    title = f"kernels: {len(rows) - wrong} of {len(rows)} agree with the definition in float32"
    return {"title": title, "rows": rows, "lines": [line(row) for row in rows]}


def cases(torch: Any, dtype: Any) -> list[Case]:
    """Every operator with odd lengths, CPU tensors in ``dtype``."""
    from turbodiffusion.ops import attention, linear, norm, rope, sage, sla

    def random(*shape: int) -> Any:
        return torch.randn(*shape).to(dtype)

    def int8(activation: Any) -> Any:
        return functools.partial(linear.int8_linear, activation=activation)

    def sparse(*tensors: Any) -> Any:
        return sla.sparse_linear_attention(
            *tensors, topk=0.5, block_q=128, block_k=64, feature_map="softmax", blocks=kept
        )

    q, k, v = (random(1, 333, 2, 64) for _ in range(3))
    x, bias = random(1, 333, 256), random(256)
    quantised = linear.quantize_weight(torch.randn(256, 256))
    table = rope.rope_table((3, 3, 37), (24, 20, 20))
    kept = torch.tensor([0, 2, 5]).expand(1, 2, 3, 3).contiguous()
    return [
        Case("attention", "attention", attention.attention, (q, k, v)),
        Case("linear", "linear", linear.linear, (x, random(192, 256), random(192))),
        Case("linear", "int8 by tile", int8("tile"), (x, *quantised, bias)),
        Case("linear", "int8 by group", int8("group"), (x, *quantised, bias)),
        Case("norm", "rms_norm", norm.rms_norm, (x, bias, 1e-6)),
        Case("norm", "layer_norm", norm.layer_norm, (x, bias, random(256), 1e-6)),
        Case("rope", "rope", rope.apply_rope, (q, table)),
        Case("sla", "sla", sparse, (q, k, v, torch.eye(64), torch.zeros(64))),
        Case("sage", "8-bit attention", sage.sage_attention, (q, k, v), attention.attention),
    ]


def compare(torch: Any, device: Any, case: Case) -> list[dict[str, Any]]:
    """One row for every form of the operator that can run on ``device``."""
    from turbodiffusion.ops import backend

    dtype = str(case.arguments[0].dtype).removeprefix("torch.")
    limit = max(LIMIT[dtype], LIMIT.get(case.label, 0.0))
    row = {"device": str(device), "operator": case.label, "form": "naive", "dtype": dtype}
    os.environ[backend.VARIABLE] = "naive"
    try:
        wide = _cast(torch, case.arguments, "cpu", torch.float32)
        reference = (case.exact or case.function)(*wide).double()
    except Exception as error:
        return [{**row, "device": "cpu", **_answer(limit), "error": _said(error)}]
    rows = []
    for form in backend.available(case.operator, device):
        if form == "naive" and device.type == "cpu" and case.exact is None:
            continue  # the reference itself
        os.environ[backend.VARIABLE] = form
        moved = _cast(torch, case.arguments, device, None)
        rows.append({**row, "form": form, **_try(case.function, moved, reference, limit)})
    return rows


def _try(function: Any, arguments: tuple[Any, ...], reference: Any, limit: float) -> dict[str, Any]:
    answer = _answer(limit)
    try:
        result = function(*arguments).double().cpu()
        start = time.perf_counter()
        function(*arguments).sum().item()
        answer["milliseconds"] = round((time.perf_counter() - start) * 1e3, 3)
    except Exception as error:
        return {**answer, "error": _said(error)}
    relative = float((result - reference).norm() / reference.norm())
    answer["relative"] = relative if math.isfinite(relative) else None
    if not relative <= limit:
        answer["error"] = f"relative error {relative:.2g}, allowed {limit:.2g}"
    return answer


def _answer(limit: float) -> dict[str, Any]:
    return {"relative": None, "limit": limit, "milliseconds": None, "error": ""}


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _cast(torch: Any, value: Any, device: Any, dtype: Any) -> Any:
    """Tensors to ``device``, floating ones to ``dtype`` where one is given; tuples item by item."""
    if isinstance(value, tuple):
        return tuple(_cast(torch, one, device, dtype) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if dtype and value.is_floating_point() else value.dtype)


def line(row: dict[str, Any]) -> str:
    head = f"  {row['device']:<7} {row['operator']:<24} {row['form']:<9} {row['dtype']:<9}"
    if row["error"]:
        return f"{head} WRONG: {row['error']}"
    return f"{head} error {row['relative']:.1e}  {row['milliseconds']:8.2f} ms"


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
