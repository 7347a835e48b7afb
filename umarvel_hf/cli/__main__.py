"""``python -m umarvel_hf.cli``: the command for launchers that start modules."""

import sys

from umarvel_hf.cli import main

if __name__ == "__main__":
    sys.exit(main())
