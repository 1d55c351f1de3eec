"""Write two frames as mp4 and read them back: ``video_facts.py ROOT``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path


def main(root: str) -> dict[str, str]:
    sys.path.insert(0, root)
    import numpy as np

    from turbodiffusion.errors import TurboDiffusionError
    from turbodiffusion.media.read import read_video
    from turbodiffusion.media.write import open_writer

    frames = np.zeros((2, 32, 48, 3), dtype=np.uint8)
    frames[1] = 200
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "two.mp4"
        try:
            with open_writer(path, 48, 32, 16.0, frames=2) as writer:
                writer.write(frames)
            back = read_video(path).frames
        except TurboDiffusionError as error:
            return {"video": error.message}
    if back.shape != frames.shape or abs(back.astype(int) - frames.astype(int)).max() > 8:
        return {"video": f"frames of shape {back.shape} with other values came back"}
    return {"video": "ok"}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
