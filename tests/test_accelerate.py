"""The configuration files for `accelerate launch`: they load, and two ranks train under them."""

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file

CONFIGS = files("umarvel_hf.recipes") / "accelerate"


def test_the_configuration_loads_and_names_the_command_that_uses_it():
    assert [file.name for file in CONFIGS.iterdir()] == ["ddp.yaml"]
    config = load_config_from_file(str(CONFIGS / "ddp.yaml"))  # refuses keys that it does not know
    assert config.distributed_type == DistributedType.MULTI_GPU and config.mixed_precision == "bf16"
    text = (CONFIGS / "ddp.yaml").read_text(encoding="utf-8")
    assert "accelerate launch --config_file" in text and "-m umarvel_hf.cli train RECIPE" in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_ranks_train_alike_under_the_configuration(checkpoint, tmp_path, kind):
    program = Path(__file__).with_name("step_on_ranks.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml")]
    launch += ["--num_processes", "2", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(program), str(checkpoint), str(tmp_path), kind],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "1.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    temperature = next(tensor for name, tensor in first.items() if "similarity" in name and "original" not in name)
    assert any("lora_B" in name and tensor.any() for name, tensor in first.items()) == (kind == "lora")
    assert temperature.dtype == torch.float32 and abs(temperature.exp() - 0.05) > 1e-4
