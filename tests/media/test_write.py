"""Outputs appear complete or not at all, and bad requests are refused by name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import turbodiffusion
from tests.media.clips import halves
from turbodiffusion.errors import CapacityError, MediaError, SetupError, UsageError
from turbodiffusion.media import (
    Video,
    open_writer,
    read_settings,
    read_video,
    resolve_output,
    side_by_side,
    to_uint8,
)

NAMES = ["clip.mp4", "clip.webm", "clip.gif", "clip.png", "folder/"]


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_interrupted_output_leaves_nothing(tmp_path, name, kind):
    with pytest.raises(kind), open_writer(f"{tmp_path}/{name}", 32, 16, 16) as writer:
        writer.write(halves(32, 16, 4))
        assert any(".partial" in n for n in listing(tmp_path))
        raise kind
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_old_output_stays_until_the_new_one_is_complete(tmp_path, name):
    target = f"{tmp_path}/{name}"
    path = Video(halves(32, 16, 3), 16, {"run": 1}).save(target)
    with pytest.raises(ValueError), open_writer(target, 32, 16, 16, {"run": 2}) as writer:
        writer.write(halves(32, 16, 5))
        raise ValueError
    assert read_settings(path) == {"run": 1}
    with open_writer(target, 32, 16, 16, {"run": 3}) as writer:
        writer.write(halves(32, 16, 5))
        assert read_settings(path) == {"run": 1}
    assert read_settings(path) == {"run": 3}
    assert len(read_video(path)) == 5
    assert listing(tmp_path) == [path.name]


@pytest.mark.parametrize("name", NAMES)
def test_stale_partial_is_overwritten(tmp_path, name):
    """A killed process could not clean up; the next run does."""
    output = resolve_output(f"{tmp_path}/{name}")
    if output.format == "frames":
        output.partial.mkdir()
        (output.partial / "00099.png").write_bytes(b"old")
    else:
        output.partial.write_bytes(b"old" * 100_000)
    path = Video(halves(32, 16, 3)).save(f"{tmp_path}/{name}")
    assert listing(tmp_path) == [path.name]
    assert len(read_video(path)) == 3


def test_partial_is_a_hidden_neighbour(tmp_path):
    assert resolve_output(tmp_path / "a b.mp4").partial == tmp_path / ".a b.partial.mp4"


def test_killed_process_leaves_no_final_name(tmp_path):
    code = (
        "import os, numpy as np\n"
        "from turbodiffusion.media import open_writer\n"
        "with open_writer('clip.mp4', 32, 32, 16) as w:\n"
        "    w.write(np.zeros((5, 32, 32, 3), np.uint8)); os._exit(9)\n"
    )
    root = str(Path(__file__).parents[2])
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}
    )
    assert child.returncode == 9
    assert listing(tmp_path) == [".clip.partial.mp4"]


def test_no_frames(tmp_path):
    with pytest.raises(MediaError, match="no frame came"), open_writer(tmp_path / "x.mp4", 8, 8, 1):
        pass
    with pytest.raises(UsageError, match="0 frames"):
        open_writer(tmp_path / "x.mp4", 8, 8, 1, frames=0)
    with pytest.raises(UsageError, match="not a video"):
        Video(np.zeros((0, 8, 8, 3), np.uint8))
    assert listing(tmp_path) == []


def test_unknown_length_and_one_frame(tmp_path):
    with pytest.warns(UserWarning, match=r"x\.jpg"), open_writer(tmp_path / "x.mp4", 8, 8, 1) as w:
        w.write(halves(8, 8, 1))
    assert listing(tmp_path) == ["x.jpg"] == [w.path.name]
    with open_writer(tmp_path / "y.png", 8, 8, 1) as w:
        w.write(halves(8, 8, 1))
    assert w.path == tmp_path / "y.png"


def test_parents_are_created(tmp_path):
    path = Video(halves(16, 16, 2)).save(tmp_path / "a" / "ü b" / "x.gif")
    assert path.is_file()


@pytest.mark.parametrize(
    ("name", "frames", "wanted", "format"),
    [
        ("x.mp4", 5, "x.mp4", "mp4"), ("x.MP4", 5, "x.MP4", "mp4"), ("x", 5, "x.mp4", "mp4"),
        ("x", None, "x.mp4", "mp4"), ("x", 1, "x.jpg", "jpg"), ("x.jpeg", 1, "x.jpeg", "jpg"),
        ("x.png", 1, "x.png", "png"), ("x.png", 2, "x", "frames"), ("x/", 2, "x", "frames"),
        ("x.d/", 1, "x.d", "frames"), (".mp4", 2, ".mp4.mp4", "mp4"),
        ("a.b.gif", 1, "a.b.gif", "gif"),
    ],
)  # fmt: skip
def test_names(tmp_path, name, frames, wanted, format):
    output = resolve_output(f"{tmp_path}/{name}", frames)
    assert (output.path, output.format) == (tmp_path / wanted, format)


def test_existing_folder_takes_frames(tmp_path):
    folder = tmp_path / "run.1"
    folder.mkdir()
    assert resolve_output(folder).format == "frames"
    Video(halves(16, 16, 9)).save(folder)
    Video(halves(16, 16, 2)).save(folder)
    assert listing(folder) == ["00000.png", "00001.png"]


def test_folder_with_other_files_is_kept(tmp_path):
    (tmp_path / "thesis.docx").write_text("years of work")
    for target in (tmp_path, f"{tmp_path}/"):
        with pytest.raises(MediaError, match=r"thesis\.docx"):
            Video(halves(16, 16, 2)).save(target)
    assert listing(tmp_path) == ["thesis.docx"]


def test_folder_filled_meanwhile_is_kept(tmp_path):
    folder = tmp_path / "clip"
    with (
        pytest.raises(MediaError, match=r"\.clip\.partial"),
        open_writer(f"{folder}/", 16, 16, 16) as w,
    ):
        w.write(halves(16, 16, 2))
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    assert listing(folder) == ["notes.txt"]
    assert listing(tmp_path / ".clip.partial") == ["00000.png", "00001.png"]


@pytest.mark.parametrize("name", ["x.avi", "x.mp5", "v0.1"])
def test_unknown_extension(tmp_path, name):
    with pytest.raises(UsageError, match=r"not one that can be written.*\.mp4, \.webm, \.gif"):
        open_writer(tmp_path / name, 16, 16, 16)


def test_refused_requests(tmp_path):
    clip = halves(16, 16, 3)
    with pytest.raises(UsageError, match="there are 3"):
        Video(clip).save(tmp_path / "x.jpg")
    with pytest.raises(UsageError, match="can hold one frame"), open_writer(
        tmp_path / "x.jpg", 16, 16, 16
    ) as w:  # fmt: skip
        w.write(clip)
    with pytest.raises(UsageError, match="at most 50"):
        Video(clip, 60).save(tmp_path / "x.gif")
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="frames per second"):
            open_writer(tmp_path / "x.mp4", 16, 16, fps)
    with pytest.raises(UsageError, match="0×16"):
        open_writer(tmp_path / "x.mp4", 0, 16, 16)
    with pytest.raises(UsageError, match="empty"):
        Video(clip).save("")
    (tmp_path / "dir.mp4").mkdir()
    with pytest.raises(MediaError, match="is a folder"):
        Video(clip).save(tmp_path / "dir.mp4")
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="a file has that name"):
        Video(clip).save(f"{tmp_path}/file/")
    with pytest.raises(MediaError, match="could not be written"):
        Video(clip).save(tmp_path / "file" / "x.mp4")
    assert listing(tmp_path) == ["dir.mp4", "file"]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 16, 17, 3), np.uint8),
        np.zeros((2, 16, 16, 4), np.uint8),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((2, 16, 16, 3), np.float32),
    ],
    ids=["width", "channels", "no time", "float"],
)
def test_wrong_frames(tmp_path, frames):
    with (
        pytest.raises(UsageError, match=r"must be uint8 of shape \(n, 16, 16, 3\)"),
        open_writer(tmp_path / "x.mp4", 16, 16, 16) as writer,
    ):
        writer.write(frames)
    assert listing(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
@pytest.mark.parametrize("name", NAMES[:4])
def test_disk_full(tmp_path, name):
    """A real failure of the operating system to write on, in the middle of a file."""
    code = (
        "import resource, sys, warnings\n"
        "import numpy as np\n"
        "from turbodiffusion.errors import CapacityError\n"
        "from turbodiffusion.media import open_writer\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "rng = np.random.default_rng(0)\n"
        "try:\n"
        f"    with open_writer({name!r}, 128, 128, 16) as writer:\n"
        "        for _ in range(20):\n"
        "            writer.write(rng.integers(0, 256, (4, 128, 128, 3), dtype=np.uint8))\n"
        "except CapacityError as error:\n"
        "    sys.exit(error.exit_code if error.code == 'media-disk-full' else 1)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, timeout=60)
    assert child.returncode == 4
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, CapacityError, "media-disk-full"),
        (errno.EACCES, MediaError, "media-not-writable"),
        (errno.EROFS, MediaError, "media-not-writable"),
        (errno.EIO, MediaError, "media-write-failed"),
    ],
)
def test_errors_of_the_system(tmp_path, monkeypatch, number, kind, code):
    def fail(**kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(kind) as caught:
        Video(halves(16, 16, 2)).save(tmp_path / "x.mp4")
    assert caught.value.code == code
    assert "x.mp4" in caught.value.message


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="needs a user who can be refused"
)
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MediaError, match="cannot be written"):
        Video(halves(16, 16, 2)).save(tmp_path / "x.mp4")
    tmp_path.chmod(0o700)


def test_complete_output_survives_a_failing_rename(tmp_path, monkeypatch):
    """On Windows a player may hold the old file; the new one must not be lost."""

    def locked(source, target):
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(os, "replace", locked)
    with pytest.raises(MediaError, match=r"is complete but .*\.x\.partial\.mp4"):
        Video(halves(16, 16, 2), 16, {"run": 1}).save(tmp_path / "x.mp4")
    assert read_settings(tmp_path / ".x.partial.mp4") == {"run": 1}


@pytest.mark.parametrize(("module", "name"), [("av", "x.mp4"), ("PIL.Image", "x.gif")])
def test_missing_library(tmp_path, monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SetupError, match="python -m pip install") as caught:
        Video(halves(16, 16, 2)).save(tmp_path / name)
    assert caught.value.exit_code == 3
    assert listing(tmp_path) == []


def test_missing_codec(tmp_path, monkeypatch):
    monkeypatch.setattr("av.codecs_available", {"mpeg4"})
    with pytest.raises(SetupError, match="no libx264 encoder"):
        Video(halves(16, 16, 2)).save(tmp_path / "x.mp4")


def test_to_uint8():
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.00392, 0.5, 1.0, 1.5, float("nan")])
    wanted = [0, 0, 0, 128, 128, 191, 255, 255, 0]
    assert to_uint8(x.reshape(1, 1, 1, 1, 9))[0, 0, 0, :, 0].tolist() == wanted
    levels = torch.arange(256)
    exact = (levels / 255 * 2 - 1).reshape(1, 1, 1, 1, 256)
    assert to_uint8(exact).flatten().equal(levels.byte())
    video = torch.rand(2, 3, 5, 4, 6) * 2 - 1
    out = to_uint8(video)
    assert out.shape == (2, 5, 4, 6, 3)
    reference = (((video[1, 2, 3, 1, 5] + 1) / 2) * 255 + 0.5).floor()
    assert out[1, 3, 1, 5, 2] == reference


def test_side_by_side():
    batch = torch.arange(2 * 5 * 4 * 6 * 3, dtype=torch.int32).reshape(2, 5, 4, 6, 3)
    joined = side_by_side(batch)
    assert joined.shape == (5, 4, 12, 3)
    assert joined[:, :, :6].equal(batch[0]) and joined[:, :, 6:].equal(batch[1])


def test_video_object(tmp_path):
    clip = torch.from_numpy(halves(64, 32, 8))
    video = Video(clip, 16, {"seed": 1})
    assert isinstance(video.frames, np.ndarray)
    assert (len(video), video.duration, video.width, video.height) == (8, 0.5, 64, 32)
    assert repr(video) == "Video(8 frames of 64×32, 16 fps, 0.50 s)"
    pictures = video.to_pil()
    assert len(pictures) == 8 and np.array_equal(np.asarray(pictures[3]), clip[3].numpy())
    html = video._repr_html_()
    assert 'width="384"' in html and "data:video/mp4;base64," in html and "pixelated" in html
    assert "data:image/png" in Video(clip[:1])._repr_html_()
    with open_writer(tmp_path / "t.gif", 64, 32, 16) as writer:
        writer.write(clip)
    assert np.array_equal(read_video(writer.path).frames, clip.numpy())
    assert turbodiffusion.Video is Video


def test_import_is_light():
    heavy = ("av", "PIL", "torch", "numpy")
    code = f"import sys, turbodiffusion.media; sys.exit(any(m in sys.modules for m in {heavy}))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
