"""Shards: the published layout, continued to the byte, damage skipped and counted."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

from turbodiffusion.errors import CapacityError, WeightsError
from turbodiffusion.train.shards import Shards, ShardWriter, index_shard


def values(number: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    generator = torch.Generator().manual_seed(number)
    latent = torch.randn(4, 3, 2, 2, generator=generator).bfloat16()
    return latent, torch.randn(6, 8, generator=generator).bfloat16(), f"prompt {number} é"


def write(folder: Path, number: int = 0, count: int = 4) -> Path:
    writer = ShardWriter(folder, number)
    for n in range(count):
        writer.add(number * count + n, *values(number * count + n))
    return writer.finish()


def test_the_published_layout(tmp_path: Path) -> None:
    path = write(tmp_path, 3, 2)
    assert path.name == "shard_000003.tar"
    with tarfile.open(path) as archive:
        assert archive.getnames()[:3] == [
            f"000000006.{n}" for n in ("latent.pt", "embed.pt", "prompt.txt")
        ]
    found = {
        prompt: (latent, embed) for latent, embed, prompt in map(Shards(tmp_path).load, (0, 1))
    }
    for n in (6, 7):
        latent, embed, prompt = values(n)
        assert torch.equal(found[prompt][0], latent) and torch.equal(found[prompt][1], embed)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./", "000000005/", "part-7/000000005/"])
def test_shards_of_other_writers_load(tmp_path: Path, prefix: str, form: int) -> None:
    """As webdataset names members: what belongs together differs behind the first dot only."""
    with tarfile.open(tmp_path / "merged.tar", "w", format=form) as archive:
        for number in (5, 6):
            folder = tarfile.TarInfo(f"{prefix}folder-{number}/")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            latent, embed, prompt = values(number)
            members = {"prompt.txt": prompt.encode(), "extra.json": b"{}"}
            for name, value in (("embed.pt", embed), ("latent.pt", latent)):
                torch.save(value, buffer := io.BytesIO())
                members[name] = buffer.getvalue()
            for name, raw in members.items():
                info = tarfile.TarInfo(f"{prefix}{number:09d}.{name}")
                info.size, info.mtime, info.uname = len(raw), 1_700_000_000, "bigdata"
                archive.addfile(info, io.BytesIO(raw))
    shards = Shards(tmp_path)
    assert not shards.damaged and not shards.incomplete and len(shards) == 2
    found = {prompt: latent for latent, _, prompt in map(shards.load, range(2))}
    assert all(torch.equal(found[values(n)[2]], values(n)[0]) for n in (5, 6))


def test_equal_keys_of_two_merged_sets_are_two_samples(tmp_path: Path) -> None:
    one = write(tmp_path / "one", 0, 1)
    with tarfile.open(tmp_path / "both.tar", "w") as both, tarfile.open(one) as archive:
        for name in ("a", "b"):
            for member in archive.getmembers():
                source = archive.extractfile(member)
                info = tarfile.TarInfo(f"{name}/{member.name}")
                info.size = member.size
                both.addfile(info, source)
    one.unlink()
    assert [sample.key for sample in Shards(tmp_path).samples] == ["a/000000000", "b/000000000"]


def test_a_header_that_cannot_be_read_is_no_end(tmp_path: Path) -> None:
    path = write(tmp_path)
    with path.open("r+b") as file:
        file.seek(index_shard(path).samples[1].end)
        file.write(b"junk" * 128)
    shards = Shards(tmp_path)
    assert len(shards) == 2 and len(shards.damaged) == 1 and "damaged at byte" in shards.damaged[0]


# One byte less is only padding; the others cut the third sample.
@pytest.mark.parametrize(("cut", "left"), [(1, 3), (700, 2), (1500, 2), (4000, 2)])
def test_a_killed_writer_goes_on_to_the_same_bytes(tmp_path: Path, cut: int, left: int) -> None:
    whole = write(tmp_path / "whole").read_bytes()
    writer = ShardWriter(tmp_path / "killed", 0)
    for n in range(3):
        writer.add(n, *values(n))
    end = index_shard(writer.temporary).samples[-1].end
    with writer.temporary.open("r+b") as file:
        file.truncate(end - cut)
    again = ShardWriter(tmp_path / "killed", 0)
    assert again.done == set(range(left)) and not again.path.exists()
    for n in range(left, 4):
        again.add(n, *values(n))
    assert again.finish().read_bytes() == whole
    assert not again.temporary.exists()


def test_order_is_of_the_seed_and_covers_each_epoch(tmp_path: Path) -> None:
    write(tmp_path, 0), write(tmp_path, 1)
    epochs = [[Shards(tmp_path, 7).load(e * 8 + n)[2] for n in range(8)] for e in range(2)]
    shards = Shards(tmp_path, 7)
    assert [shards.load(n)[2] for n in range(8)] == epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) and len(set(epochs[0])) == 8


def test_damage_is_skipped_and_counted(tmp_path: Path) -> None:
    write(tmp_path, 0)
    cut, junk, flipped = (write(tmp_path, n) for n in (1, 2, 3))
    cut.write_bytes(cut.read_bytes()[: index_shard(cut).samples[-1].end - 1500])
    junk.write_bytes(b"no tar" * 1000)
    sample = index_shard(flipped).samples[0]
    with flipped.open("r+b") as file:
        file.seek(sample.places["latent.pt"][0])
        file.write(bytes(200))
    shards = Shards(tmp_path)
    assert len(shards) == 4 + 3 + 4
    assert (len(shards.damaged), shards.incomplete, shards.bad) == (2, 1, set())
    assert "cut off" in shards.damaged[0] and "damaged" in shards.damaged[1]
    prompts = {shards.load(n)[2] for n in range(2 * len(shards))}
    assert len(prompts) == 10 and values(12)[2] not in prompts
    assert shards.bad == {("shard_000003.tar", "000000012")}


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        Shards(tmp_path)
    assert caught.value.code == "shards-empty"


def test_a_full_disk_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ShardWriter(tmp_path, 0)
    writer.add(0, *values(0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", full)
        with pytest.raises(CapacityError) as caught:
            writer.add(1, *values(1))
    assert caught.value.code == "shards-disk"
    assert ShardWriter(tmp_path, 0).done == {0}
