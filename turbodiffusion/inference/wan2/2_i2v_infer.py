"""``python -m turbodiffusion.inference.wan2.2_i2v_infer``."""

import sys

from turbodiffusion.inference.i2v import main

if __name__ == "__main__":
    sys.exit(main())
