"""Training: rows, losses, the trainer, recipes. Every module here imports transformers, hence the call below."""

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
