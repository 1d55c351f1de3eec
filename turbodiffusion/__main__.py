"""``python -m turbodiffusion``."""

import sys

from turbodiffusion.cli.main import main

sys.exit(main())
