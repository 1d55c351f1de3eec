"""``python turbodiffusion/inference/wan2.2_i2v_infer.py --help``: the released command line."""

import sys
from pathlib import Path

# As a file, Python puts this folder first, and the released instructions put the package's own
# folder on PYTHONPATH; modules in both would hide others of their names.
HERE = Path(__file__).resolve().parent
OWN = {str(HERE), str(HERE.parent)}
sys.path[:] = [str(HERE.parent.parent), *(p for p in sys.path if str(Path(p).resolve()) not in OWN)]

from turbodiffusion.inference.i2v import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
