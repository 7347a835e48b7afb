"""The embedded benchmark, emoji artwork in four styles written out in the file layout of M-BEIR, and its model."""

from umarvel_hf.emoji.model import model_dir
from umarvel_hf.emoji.writer import benchmark_dir, write_benchmark

__all__ = ["benchmark_dir", "model_dir", "write_benchmark"]
