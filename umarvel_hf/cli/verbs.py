"""All verbs, in the order in which help lists them."""

from umarvel_hf.cli import starting, checkpoints, searching, training, measuring  # noqa: F401, I001  (that order)
