"""Batches from shards: by position, read ahead, kept, and without what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.train.runs import SPARSE, TINY
from tests.train.test_shards import values, write
from turbodiffusion.cli.main import main
from turbodiffusion.errors import UsageError
from turbodiffusion.train.sharded import NEGATIVE, Sharded
from turbodiffusion.train.shards import Sample, Shards, ShardWriter, index_shard


def test_a_step_is_the_same_in_any_parts_and_after_a_restart(tmp_path: Path) -> None:
    write(tmp_path, 0), write(tmp_path, 1)
    torch.save(torch.ones(6, 8).bfloat16(), tmp_path / NEGATIVE)

    def step(number: int, part: int) -> torch.Tensor:
        source = Sharded(tmp_path, 3, (4, 2, 2, 2), batch=4, micro_batch=part)
        passes = [source.batch(number, slot) for slot in range(4 // part)]
        assert passes[0].negative().shape == (part, 6, 8)
        return torch.cat([one.latents_BCTHW for one in passes])

    for number in range(3):
        assert torch.equal(step(number, 4), step(number, 1))
    seen = {tuple(x.flatten().tolist()) for n in range(2) for x in step(n, 2)}
    assert seen == {tuple(values(n)[0][:, :2].float().flatten().tolist()) for n in range(8)}


def test_samples_of_another_size(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UsageError) as caught:
        Sharded(tmp_path, 0, (4, 3, 9, 9), batch=1, micro_batch=1).batch(0, 0)
    assert caught.value.code == "shards-size"


@pytest.mark.parametrize(("slots", "world"), [(1, 1), (4, 1), (4, 2)])
def test_the_next_batch_is_read_while_the_last_is_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int, world: int
) -> None:
    write(tmp_path, 0, 32)
    asked: list[int] = []
    load = Shards.load

    def watched(shards: Shards, position: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        asked.append(position)
        return load(shards, position)

    monkeypatch.setattr(Shards, "load", watched)
    source = Sharded(tmp_path, 0, (4, 3, 2, 2), batch=slots, micro_batch=1)
    mine = range(0, slots, world)
    for iteration in range(3):
        for slot in mine:
            source.batch(iteration, slot)
    assert source._ahead is not None
    source._ahead[1].result()
    expected = [i * slots + slot for i in range(3) for slot in mine]
    assert asked == [*expected, 3 * slots]  # each once, in order, and one ahead
    source.batch(7, mine[-1])  # another place than foreseen, as after a restart
    assert 7 * slots + mine[-1] in asked


@pytest.mark.parametrize(("cache", "reads"), [(None, 4), (True, 4), (False, 12)])
def test_small_sets_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool | None, reads: int
) -> None:
    write(tmp_path)
    count, load = 0, Sample.load

    def counted(sample: Sample) -> tuple[torch.Tensor, torch.Tensor, str]:
        nonlocal count
        count += 1
        return load(sample)

    monkeypatch.setattr(Sample, "load", counted)
    kept, plain = Shards(tmp_path, cache=cache), Shards(tmp_path, cache=False)
    found = [kept.load(n) for n in range(12)]
    assert count == reads
    for n, (latent, embed, prompt) in enumerate(found):
        expected = plain.load(n)
        assert torch.equal(latent, expected[0]) and torch.equal(embed, expected[1])
        assert prompt == expected[2]
    size = sum(one.nbytes for one in kept.samples)
    for limit, wanted in ((size, False), (size + 1, True)):
        monkeypatch.setattr("turbodiffusion.train.shards.CACHED", limit)
        assert Shards(tmp_path).cache is wanted


def _teacher_shard(folder: Path, number: int, broken: int | None = None) -> Path:
    """Four samples as the micro teacher's, one perhaps with NaN."""
    writer = ShardWriter(folder, number)
    for n in range(4):
        generator = torch.Generator().manual_seed(4 * number + n)
        latent = torch.randn(8, 3, 8, 8, generator=generator)
        if n == broken:
            latent[0, 0, 0, 0] = torch.nan
        writer.add(4 * number + n, latent, torch.randn(24, 64, generator=generator), "a ball")
    return writer.finish()


def test_a_run_on_damaged_shards_skips_and_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    _teacher_shard(data, 0), _teacher_shard(data, 1, broken=2)
    cut, junk = _teacher_shard(data, 2), _teacher_shard(data, 3)
    cut.write_bytes(cut.read_bytes()[: index_shard(cut).samples[-1].end - 1500])
    junk.write_bytes(b"<html>not found</html>" * 500)
    config = tmp_path / "given.json"
    plain = {**SPARSE, "guidance": 1.0}  # these shards have no negative prompt
    config.write_text(json.dumps({**TINY, "loss": plain}))
    for steps in (7, 9):  # 11 sound samples, two a step: one epoch is over, then it goes on
        words = ["--config", config, "--out", out, "--set", f"data={data}", "--set",
                 f"steps={steps}", "--set", "cache=true", "--device", "cpu"]  # fmt: skip
        assert main(["train", "sla", *map(str, words)]) == 0
        said, errors = capsys.readouterr()
        report = json.loads(said)
        assert (report["steps"], report["complete"], report["broken"]) == (steps, True, 0)
        line = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
        for found in (report, line):
            counts = [found[f"skipped_{what}"] for what in ("shards", "incomplete", "samples")]
            assert counts == [2, 1, 1]
        assert "2 are damaged" in errors and "shard_000002.tar is cut off" in errors
    losses = [json.loads(one)["loss"] for one in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 9 and all(loss > 0 for loss in losses)
