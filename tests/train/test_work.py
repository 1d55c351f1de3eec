"""Operations of a step, against the calls that the losses really make."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, replace

import pytest
import torch
from torch.autograd import forward_ad

from tests.train import tiny
from turbodiffusion.models.cards import Attention, card
from turbodiffusion.train.config import change
from turbodiffusion.train.consistency import Continuous, Discrete, Following
from turbodiffusion.train.distribution import DistributionMatching
from turbodiffusion.train.presets import AlignmentLoss, DistillLoss, FlowLoss, Loss
from turbodiffusion.train.stages import settings_of
from turbodiffusion.train.times import LogNormal, UniformShift
from turbodiffusion.train.work import calls_of, forward_operations, step_operations

TIMES = UniformShift(5.0)
CONTINUOUS = Continuous(LogNormal(0.0, 1.0), warmup=0)
MATCHING = DistributionMatching(TIMES)
DERIVATIVES = ("full", "semi", "difference")
LOSSES = {
    "flow": FlowLoss(),
    "sla": AlignmentLoss(),
    **{d: DistillLoss(change(CONTINUOUS, {"derivative": d}), MATCHING) for d in DERIVATIVES},
    "unguided": DistillLoss(change(CONTINUOUS, {"guidance": 1}), None),
    "discrete": DistillLoss(Discrete(skip=3), MATCHING, every=3),
    "following": DistillLoss(Following(TIMES), MATCHING, every=3, topk=0.1),
    "matching only": DistillLoss(Discrete(scale=0.0), DistributionMatching(TIMES, steps=2)),
}


def counted(loss: Loss) -> list[float]:
    """Calls a step over a whole cycle of phases and lengths of simulations."""
    networks = replace(tiny.networks(), leader=tiny.Smooth(4))
    seen: Counter[str] = Counter()

    def hook(module, inputs) -> None:
        if forward_ad.unpack_dual(inputs[0]).tangent is not None:
            seen["tangent"] += 1
        else:
            seen["learning" if torch.is_grad_enabled() else "dense"] += 1

    for network in (networks.student, networks.teacher, networks.fake_score, networks.leader):
        network.register_forward_pre_hook(hook)
    objective = loss.objective(networks)
    # Simulations cycle with each network's own count of updates.
    cycle = 60 if isinstance(loss, DistillLoss) else 2
    for iteration in range(cycle):
        for closure in objective.phase(iteration).closures:
            closure(tiny.batch(1), tiny.generator(iteration))
    return [seen[name] / cycle for name in ("dense", "learning", "tangent")]


@pytest.mark.parametrize("name", LOSSES)
def test_calls_are_those_of_the_losses(name: str):
    assert list(astuple(calls_of(LOSSES[name]))) == pytest.approx(counted(LOSSES[name]))


def test_a_step_costs_its_calls():
    dit = card("TurboWan2.1-T2V-1.3B-480P").dit
    tokens = 32760
    dense = forward_operations(dit, tokens, Attention("dense"))
    sparse = forward_operations(dit, tokens, Attention("sla", 0.1, 64, 64))
    assert step_operations(settings_of("flow", "1.3B"), dit, tokens) == 3 * dense
    assert step_operations(settings_of("sla", "1.3B"), dit, tokens) == dense + 3 * sparse
    # Student: derivative 2 and its attention once more, 3 + 2 teacher; simulation 1.5 + 3, fake 1,
    # teacher 2. Critic, 4 of 5 steps: simulation 2.5, 3.
    own = 4 * dit.num_layers * tokens**2 * dit.dim
    by_hand = (2 * dense + own + 5 * dense + 7.5 * dense + 4 * 5.5 * dense) / 5
    found = step_operations(settings_of("rcm", "1.3B"), dit, tokens)
    assert found == pytest.approx(by_hand, rel=1e-12)
