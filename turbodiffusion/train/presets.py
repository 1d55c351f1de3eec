"""The published settings of each stage, by size of the network, and those of the embedded model.

Where the publication and the released code differ, these are the code's. It fixes the samples of a
process only: ``batch`` is then that of the publication, or of one group of shards where there is
none. Means of log-normal noise levels contain ½·ln T for T latent frames: longer videos are drawn
with more noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import card as card_named
from turbodiffusion.sampling.schedule import MIDDLE_ANGLES
from turbodiffusion.train.config import ParallelSettings
from turbodiffusion.train.consistency import Continuous, Discrete, Following
from turbodiffusion.train.distill import Distillation
from turbodiffusion.train.distribution import DistributionMatching
from turbodiffusion.train.losses import FlowMatching, Networks, Objective, SparseAlignment
from turbodiffusion.train.optim import OptimSettings
from turbodiffusion.train.times import Distribution, LogNormal, UniformShift

SHIFT_5 = UniformShift(5.0)


@dataclass(frozen=True)
class FlowLoss:
    """Flow matching; ``drop`` is the share of captions left out.

    With sparse attention in the student, of ``topk`` key blocks, it is the black-box fine-tuning.
    """

    times: Distribution = SHIFT_5
    drop: float = 0.1
    topk: float = 0.1

    def objective(self, networks: Networks) -> Objective:
        return FlowMatching(networks, self.times, self.drop)


@dataclass(frozen=True)
class AlignmentLoss:
    """White-box fine-tuning of sparse attention that keeps the ``topk`` share of key blocks.

    ``guidance`` is that of the sampler whose answers the student follows; 1: the caption's alone.
    """

    times: Distribution = field(default_factory=lambda: LogNormal(1.5, 1.6))
    scale: float = 1.0
    topk: float = 0.1
    guidance: float = 1.0

    def objective(self, networks: Networks) -> Objective:
        return SparseAlignment(networks, self.times, self.scale, self.guidance)


@dataclass(frozen=True)
class DistillLoss:
    """rCM. ``matching`` None leaves distribution matching out; ``every`` is Fq.

    ``sigma_max`` is the noise level from which samples are drawn while training. ``topk`` gives the
    student sparse attention, which has no tangent: only with a consistency loss in discrete time,
    with one that follows a leader, or with none (scale 0).
    """

    consistency: Continuous | Discrete | Following = field(
        default_factory=lambda: Continuous(SHIFT_5)
    )
    matching: DistributionMatching | None = field(
        default_factory=lambda: DistributionMatching(SHIFT_5)
    )
    every: int = 5
    sigma_max: float = 80.0
    topk: float = 0.0

    def objective(self, networks: Networks) -> Objective:
        return Distillation(networks, self.consistency, self.matching, every=self.every)


Loss = FlowLoss | AlignmentLoss | DistillLoss


@dataclass(frozen=True)
class StagePreset:
    """One stage in one size; names are those of :class:`~.config.TrainConfig`.

    Args:
        latent_frames: of the videos it is meant for.
        fake_score: optimiser of the fake score, where there is one.
    """

    card: str
    loss: Loss
    optim: OptimSettings
    batch: int
    micro_batch: int
    latent_frames: int
    steps: int = 100_000
    fake_score: OptimSettings | None = None
    parallel: ParallelSettings = ParallelSettings()  # noqa: RUF009 - frozen
    ema: float = 0.1
    save_every: int = 500
    sample_every: int = 500
    exact_derivative: bool = False


def _adam(lr: float) -> OptimSettings:
    """Distillation runs without momentum and, which is said to be crucial, without clipping."""
    return OptimSettings(lr=lr, betas=(0.0, 0.999))


_SMALL_CARD, _LARGE_CARD = "TurboWan2.1-T2V-1.3B-480P", "TurboWan2.1-T2V-14B-480P"
_SMALL = ParallelSettings(shard=4, activations="block")
_LARGE = ParallelSettings(shard=32, context=8, activations="matmul")
_TUNING = OptimSettings(lr=1e-5)

_SLA_SMALL = StagePreset(
    _SMALL_CARD, AlignmentLoss(), _TUNING,
    batch=16, micro_batch=4, latent_frames=21, parallel=_SMALL,
)  # fmt: skip
_RCM_SMALL = StagePreset(
    _SMALL_CARD, DistillLoss(Continuous(LogNormal(0.7, 1.6), warmup=1000)), _adam(2e-6),
    batch=256, micro_batch=1, latent_frames=20, fake_score=_adam(4e-7), parallel=_SMALL,
)  # fmt: skip
_RCM_LARGE = StagePreset(
    _LARGE_CARD,
    DistillLoss(Continuous(LogNormal(1.5, 1.6), warmup=0), every=10, sigma_max=200.0),
    _adam(1e-6), batch=64, micro_batch=1, latent_frames=21, fake_score=_adam(1e-7),
    parallel=_LARGE, save_every=250, sample_every=250,
)  # fmt: skip
_SLA_LARGE = StagePreset(
    _LARGE_CARD, AlignmentLoss(), _TUNING, batch=128, micro_batch=1, latent_frames=21,
    parallel=_LARGE, save_every=250, sample_every=250,
)  # fmt: skip
_BLACK_BOX = FlowLoss(drop=0.0, topk=0.05)
"""The publication's; its class of skipped key blocks does not exist in the released operator."""


def _matched(guidance: float, topk: float) -> DistillLoss:
    """Of a sparse student: it is drawn at the angles at which it will be."""
    matching = DistributionMatching(SHIFT_5, guidance=guidance, angles=MIDDLE_ANGLES)
    return DistillLoss(Following(SHIFT_5), matching, topk=topk)


def _embedded(card: str, latent_frames: int) -> dict[str, StagePreset]:
    """The stages of an embedded model; rates are those of the 1.3B times about 50, because the
    networks are 300 times smaller and learn for a few thousand steps."""
    topk = card_named(card).attention.topk
    sla = StagePreset(
        card, AlignmentLoss(SHIFT_5, topk=topk, guidance=3.0), OptimSettings(lr=1e-3, decay=0.4),
        batch=32, micro_batch=32, latent_frames=latent_frames, steps=5000,
    )  # fmt: skip
    distill = replace(sla, optim=_adam(1e-4), fake_score=_adam(1e-4), steps=4000)
    noise = LogNormal(-0.8 + 0.5 * math.log(latent_frames), 1.6)
    return {
        "flow": replace(
            sla, loss=FlowLoss(UniformShift(2.0)), batch=64, micro_batch=64, steps=60_000,
            optim=OptimSettings(lr=1e-3, betas=(0.9, 0.99), warmup=200, clip=1.0),
        ),
        "sla": sla,
        "sla-flow": replace(
            sla, loss=FlowLoss(UniformShift(2.0), drop=0.0, topk=topk), optim=OptimSettings(lr=2e-4)
        ),
        "align": replace(
            sla, loss=AlignmentLoss(SHIFT_5, topk=topk), optim=OptimSettings(lr=3e-4), steps=1200
        ),
        "match": replace(distill, loss=_matched(2.0, topk)),
        "rcm": replace(
            distill, exact_derivative=True,
            loss=DistillLoss(
                Continuous(noise, guidance=2.0, warmup=200),
                DistributionMatching(SHIFT_5, guidance=2.0),
            ),
        ),
    }  # fmt: skip


PRESETS: dict[str, dict[str, StagePreset]] = {
    "1.3B": {
        "flow": replace(_SLA_SMALL, loss=FlowLoss()),
        "sla": _SLA_SMALL,
        "align": replace(_SLA_SMALL, loss=AlignmentLoss(SHIFT_5)),
        "sla-flow": replace(_SLA_SMALL, loss=_BLACK_BOX, batch=64, steps=2000),
        "rcm": _RCM_SMALL,
        "match": replace(_RCM_SMALL, loss=_matched(5.0, 0.1)),
    },
    "14B": {
        "flow": replace(_SLA_LARGE, loss=FlowLoss()),
        "sla": _SLA_LARGE,
        "align": replace(_SLA_LARGE, loss=AlignmentLoss(SHIFT_5)),
        "sla-flow": replace(_SLA_LARGE, loss=_BLACK_BOX, batch=64, steps=2000),
        "rcm": _RCM_LARGE,
        "match": replace(_RCM_LARGE, loss=replace(_matched(5.0, 0.1), every=10, sigma_max=200.0)),
    },
    "mini": _embedded("mini-teacher", latent_frames=9),
    "micro": _embedded("micro-teacher", latent_frames=5),
}  # fmt: skip
"""By size and stage. ``sla-flow`` tunes sparse attention by the ordinary loss, ``sla`` by its dense
teacher. ``align`` and ``match`` are not part of the published recipe, which ends with the merge:
the one mends what a merge costs at the noise levels of few steps, the other what is left."""


def preset(name: str, stage: str) -> StagePreset:
    """Settings of ``stage`` in the size ``name``.

    Raises:
        UsageError: there are none.
    """
    if name not in PRESETS:
        raise UsageError(
            "train-preset", f"There is no preset {name!r}.", f"Use one of {', '.join(PRESETS)}."
        )
    if stage not in PRESETS[name]:
        raise UsageError(
            "train-stage", f"There is no stage {stage!r}.",
            f"Use one of {', '.join(PRESETS[name])}.",
        )  # fmt: skip
    return PRESETS[name][stage]
