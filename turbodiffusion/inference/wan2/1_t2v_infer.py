"""``python -m turbodiffusion.inference.wan2.1_t2v_infer``."""

import sys

from turbodiffusion.inference.t2v import main

if __name__ == "__main__":
    sys.exit(main())
