"""A program as one of several ranks that split weights on CPUs: split_on_ranks.py FILE|MODULE ARGUMENTS."""

import runpy
import sys

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def allow_on_cpus() -> None:
    """accelerate 1.15 overlooks on CPUs that it was told to split weights, and copies them."""
    build = AcceleratorState.__init__

    def build_and_split(state, *args, fsdp_plugin=None, **kwargs):
        build(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if state._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(state._mixed_precision)
            state.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = build_and_split


if __name__ == "__main__":
    torch.set_num_threads(1)
    allow_on_cpus()
    sys.argv = sys.argv[1:]
    run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
    run(sys.argv[0], run_name="__main__")
