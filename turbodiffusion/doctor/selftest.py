"""``turbodiffusion selftest``: everything from the driver to a video, each stage told apart.

Checks, then every operator against its definition, then (with a video wanted) a clip of the
embedded model, which is written, read back and judged: the prompt names an object, a colour and a
motion, and the judge of the miniature world looks for them. Text, denoising and decoding are timed
separately (loading is told on the way); one figure would hide which of them is slow.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from turbodiffusion.doctor import measure, readings, show
from turbodiffusion.doctor.facts import Facts
from turbodiffusion.doctor.verdict import Verdict, judge

PROMPT = "a red circle moving right on a black background"
PHASES = ("text", "denoise", "decode")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Clip:
    """What came of the test video. ``seen`` is what the judge read, ``right`` what it agreed to."""

    frames: int
    seconds: dict[str, float]
    seen: str
    right: dict[str, bool | None]

    @property
    def good(self) -> bool:
        return bool(self.right.get("joint"))


def run(video: bool, say: Say) -> int:
    """All stages until one fails; 0, or 3 when the machine is not ready, or 1 when a number or the
    video is wrong."""
    facts = readings.read()
    verdict = judge(facts)
    if not check(facts, verdict, say):
        return verdict.exit_code
    kernels = measure.run("kernels", facts.python.executable, facts.root)
    say(kernels.text())
    if kernels.failed:
        return 1
    if not video:
        say("selftest passed; --video also makes and judges a clip.")
        return 0
    clip = make_clip(say)
    say(describe(clip))
    return 0 if clip.good else 1


def check(facts: Facts, verdict: Verdict, say: Say) -> bool:
    """The doctor's stage: problems are shown, blockers end the test."""
    for finding in verdict.problems:
        say("\n".join(show.problem(finding)))
    say(show.summary(facts, verdict))
    return verdict.exit_code == 0


def make_clip(say: Say) -> Clip:
    """Generate with the smaller embedded model, write, read back, judge."""
    from turbodiffusion.media.read import read_video
    from turbodiffusion.mini.captions import parse
    from turbodiffusion.mini.judge import judge as look
    from turbodiffusion.mini.judge import score
    from turbodiffusion.mini.language import read_prompt
    from turbodiffusion.pipeline.batch import generate_all

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        output = str(Path(folder) / "selftest.mp4")
        flags = {"prompt": PROMPT, "model": "micro", "output": output, "seed": 0}
        result = next(iter(generate_all(flags, read_prompt)))
        if result.error is not None:
            raise result.error
        assert result.path is not None
        frames = read_video(result.path).frames
    reading = look(frames)
    seen = ", ".join(f"{one.colour} {one.shape} {one.motion}" for one in reading.objects)
    expected = parse(PROMPT)
    assert expected is not None
    on = f"{seen or 'nothing'} on {reading.background or 'an unknown background'}"
    return Clip(len(frames), result.seconds, on, score(reading, expected))


def describe(clip: Clip) -> str:
    """Frames, phases, and what is in the video."""
    phases = [f"{name} {clip.seconds[name]:.1f} s" for name in PHASES if name in clip.seconds]
    wrong = [name for name, right in clip.right.items() if right is False and name != "joint"]
    word = "selftest passed" if clip.good else f"selftest failed ({', '.join(wrong)} wrong)"
    return (
        f"video: {clip.frames} frames, {', '.join(phases)}\n"
        f"asked for: {PROMPT}\nseen: {clip.seen}\n{word}."
    )
