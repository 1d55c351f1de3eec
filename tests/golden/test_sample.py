"""The few-step loop replays the golden runs: noise, times, experts, and every state on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden.test_dit import build
from tests.golden.vectors import Golden, golden_files, golden_id, load_golden, relative_l2
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.sampling.noise import draw_noise
from turbodiffusion.sampling.rcm import sample_rcm
from turbodiffusion.sampling.schedule import rcm_times


def experts(golden: Golden) -> dict[str, WanDiT]:
    """The networks of a run by expert name, from the DiT vectors beside it."""
    kind = golden.metadata["kind"]
    names = {"t2v": {"": "dit_t2v_bf16"}}.get(
        kind, {expert: f"dit_{kind}_{expert}_bf16" for expert in ("high", "low")}
    )
    folder = golden.path.parent
    return {
        expert: build(load_golden(folder / f"{name}.safetensors")) for expert, name in names.items()
    }


@pytest.mark.parametrize("path", golden_files("sample_*"), ids=golden_id)
def test_run(path: Path) -> None:
    golden = load_golden(path)
    meta = golden.metadata
    steps, ode = int(meta["num_steps"]), meta["ode"] == "True"
    networks = experts(golden)
    states: list[Tensor] = []
    used: list[str] = []

    def velocity(x: Tensor, timestep_B1: Tensor, expert: str) -> Tensor:
        states.append(x)  # the float64 state itself; the network gets the rounding of a real run
        used.append(expert)
        inputs = golden.group("in")
        return networks[expert](x.bfloat16(), timestep_B1, inputs["context"], inputs.get("y"))

    times = rcm_times(steps, float(meta["sigma_max"]))
    torch.testing.assert_close(times, golden["t_steps"], rtol=0, atol=1e-12)

    generator = torch.Generator().manual_seed(int(meta["seed"]))
    noise = draw_noise(golden["in.noise"].shape, generator)
    torch.testing.assert_close(noise, golden["in.noise"], rtol=0, atol=1e-6)
    out = sample_rcm(
        velocity,
        noise,
        num_steps=steps,
        sigma_max=float(meta["sigma_max"]),
        generator=generator,
        ode=ode,
        boundary=float(meta["boundary"]) if "high" in networks else None,
        model_dtype=torch.float64,
    )

    errors = [relative_l2(x, golden[f"x.{i}"]) for i, x in enumerate([*states[1:], out])]
    assert len(errors) == steps
    assert max(errors) < 1e-2, errors
    assert relative_l2(out, golden["out"]) < 1e-2
    assert [float(expert == "low") for expert in used] == golden["used_low"].tolist()
