"""``turbodiffusion info`` prints what is stored."""

from __future__ import annotations

import argparse
import json

import pytest

from tests.media.clips import SETTINGS, halves
from turbodiffusion.cli import info
from turbodiffusion.errors import MediaError
from turbodiffusion.media import Video


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    info.add_parser(parser.add_subparsers())
    return info.run(parser.parse_args(["info", *arguments]))


def test_text(tmp_path, capsys):
    settings = {"prompt": "a red circle", "seed": 3, "model": {"name": "micro"}}
    path = Video(halves(64, 32, 8), 16, settings).save(tmp_path / "x.mp4")
    assert run(str(path)) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: mp4, 64×32, 8 frames, 16 fps, 0.50 s",
        "  prompt  a red circle",
        "  seed    3",
        '  model   {"name": "micro"}',
    ]


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.gif", "x.png"])
def test_json(tmp_path, capsys, name):
    path = Video(halves(33, 17, 5), 10, SETTINGS).save(tmp_path / name)
    assert run(str(path), "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content.pop("settings") == SETTINGS
    assert content.pop("format") == ("frames" if name == "x.png" else path.suffix[1:])
    assert content == {
        "file": str(path), "width": 33, "height": 17, "frames": 5, "fps": 10, "seconds": 0.5,
    }  # fmt: skip


def test_one_frame(tmp_path, capsys):
    path = Video(halves(16, 16, 1), 16, {}).save(tmp_path / "x.png")
    assert run(str(path)) == 0
    assert capsys.readouterr().out == f"{path}: png, 16×16, 1 frame\n"


def test_no_settings(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(MediaError, match="holds no settings"):
        run(str(tmp_path / "x.png"))
    with pytest.raises(MediaError, match="There is no file"):
        run(str(tmp_path / "y.png"))
