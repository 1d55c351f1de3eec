"""Recognise what is not a checkpoint before anything tries to read it as one.

A download that went wrong rarely leaves nothing: it leaves a login page, a git-lfs pointer or the
first half of the file, under the right name. Each of these has its own error here.
"""

from __future__ import annotations

from pathlib import Path

from turbodiffusion.errors import WeightsError

AGAIN = "Delete it and fetch it again, for example with `turbodiffusion download`."
_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


def container(path: Path) -> str:
    """``"safetensors"`` or ``"pth"``, decided by the first bytes of the file, not by its name.

    Raises:
        WeightsError: the file is missing, empty, a web page, a git-lfs pointer, an old pickle
            or of a kind this package does not read.
    """
    if not path.is_file():
        raise WeightsError(
            "weights-missing",
            f"There is no checkpoint at {path}.",
            "Check the path, or fetch the model with `turbodiffusion download`.",
        )
    size = path.stat().st_size
    if size == 0:
        raise WeightsError("weights-empty", f"{path} is an empty file.", AGAIN)
    with path.open("rb") as file:
        head = file.read(512)
    _refuse_text(path, head)
    if head.startswith(b"PK\x03\x04"):
        return "pth"
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return "safetensors"
    _refuse_binary(path, head)
    raise WeightsError(
        "weights-format",
        f"{path} starts with {head[:8]!r}, which is neither a safetensors nor a .pth file.",
        "Give a .safetensors or .pth checkpoint, a folder of shards or a diffusers folder.",
    )


def _refuse_text(path: Path, head: bytes) -> None:
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(
            "weights-lfs-pointer",
            f"{path} is a git-lfs pointer of {path.stat().st_size} bytes, not the checkpoint.",
            "Run `git lfs pull` in its repository, or `turbodiffusion download`.",
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGE):
        raise WeightsError(
            "weights-html",
            f"{path} is a web page saved under a checkpoint's name (a login or error page).",
            AGAIN,
        )
    if text.startswith((b'{"error', b"entry not found", b"repository not found", b"access to")):
        line = head.split(b"\n", 1)[0][:100].decode("utf-8", "replace")
        raise WeightsError(
            "weights-html", f"{path} holds a server's answer, not a checkpoint: {line!r}.", AGAIN
        )


def _refuse_binary(path: Path, head: bytes) -> None:
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise WeightsError(
            "weights-legacy-pickle",
            f"{path} is in the pickle format of torch before 1.6, which cannot be memory-mapped.",
            "Re-save it where it is trusted: torch.save(torch.load(old, weights_only=True), new).",
        )
    if head.startswith(b"GGUF"):
        raise WeightsError(
            "weights-format",
            f"{path} is a GGUF file; its block quantisation is not supported.",
            "Use the .pth or .safetensors form of the model.",
        )
    if not any(head):
        raise WeightsError(
            "weights-truncated",
            f"{path} starts with zeros: a download that reserved the space and never finished.",
            AGAIN,
        )
