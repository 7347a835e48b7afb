"""The embedded benchmark, emoji artwork in four styles written out in the file layout of M-BEIR, and its model."""

from umarvel_hf.emoji.model import model_dir
from umarvel_hf.emoji.writer import benchmark_dir, write_benchmark

__all__ = ["DATASETS", "INSTRUCTIONS", "benchmark_dir", "model_dir", "write_benchmark"]

DATASETS = {
    "scenes": "two or three emoji on one canvas; pairs never seen together in training, every pool full of near-misses",
    "emojiseen": "S: single emoji that training showed, in a drawing style it never saw",
    "emojiunseen": "U: single emoji that training never showed",
}
# By kind of query, what the shipped model was trained on; other checkpoints carry their own.
INSTRUCTIONS = {
    "text": "Find the emoji picture that matches this description.",
    "image": "Find the same emoji drawn by another artist.",
    "image-text": "Find the picture after the requested change.",
}
