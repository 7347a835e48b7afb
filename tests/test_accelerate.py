"""The configuration files for `accelerate launch`: they load, and two ranks train under them, weights split or not."""

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
from torch.testing import assert_close

import train_on_ranks
from pictures import picture
from umarvel_hf.encoding import load

CONFIGS = files("umarvel_hf.recipes") / "accelerate"


@pytest.mark.parametrize(
    ("name", "kind"), [("ddp.yaml", DistributedType.MULTI_GPU), ("fsdp2.yaml", DistributedType.FSDP)]
)
def test_a_configuration_loads_and_names_the_command_that_uses_it(name, kind):
    config = load_config_from_file(str(CONFIGS / name))  # refuses keys that it does not know
    assert config.distributed_type == kind and config.mixed_precision == "bf16"
    text = (CONFIGS / name).read_text(encoding="utf-8")
    assert f"accelerate launch --config_file umarvel_hf/recipes/accelerate/{name}" in text
    assert "-m umarvel_hf.cli train RECIPE" in text


def test_there_are_no_other_configurations():
    assert sorted(file.name for file in CONFIGS.iterdir()) == ["ddp.yaml", "fsdp2.yaml"]


def launch(config, *command):
    """Two ranks under a configuration."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / config]
    launcher += ["--num_processes", "2", "--main_process_port", "0"]
    here = Path(__file__).parent
    done = subprocess.run(
        [str(part) for part in [*launcher, *command]],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=here,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(
    ("config", "program"),
    [("ddp.yaml", ["step_on_ranks.py"]), ("fsdp2.yaml", ["split_on_ranks.py", "step_on_ranks.py"])],
    ids=["copied", "split"],
)
def test_two_ranks_train_measure_save_and_go_on_alike(checkpoint, tmp_path, config, program, kind):
    launch(config, *program, checkpoint, tmp_path, kind)
    first, second = load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "1.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    temperature = next(tensor for name, tensor in first.items() if "similarity" in name and "original" not in name)
    assert any("lora_B" in name and tensor.any() for name, tensor in first.items()) == (kind == "lora")
    assert temperature.dtype == torch.float32 and abs(temperature.exp() - 0.05) > 1e-4
    for folder in ("saved", "run/checkpoint-2"):
        saved = dict(load(tmp_path / folder).named_parameters())
        assert saved.keys() == first.keys() and all(torch.equal(saved[name], first[name]) for name in first)


@pytest.mark.slow
def test_two_ranks_that_split_weights_train_as_one_that_holds_them(checkpoint, tmp_path):
    picture(56, 56, seed=0).save(tmp_path / "picture.png")
    launcher = ["--mixed_precision", "no", "split_on_ranks.py", "train_on_ranks.py"]
    launch("fsdp2.yaml", *launcher, checkpoint, tmp_path / "picture.png", tmp_path, 4)
    for job in train_on_ranks.JOBS:
        one, _ = train_on_ranks.train(job, checkpoint, str(tmp_path / "picture.png"), tmp_path, rows_a_rank=8)
        two = load_file(tmp_path / f"{job}-0.safetensors")
        assert one.keys() == two.keys()
        for name, parameter in one.items():
            assert_close(two[name], parameter, rtol=1e-5, atol=1e-5, msg=lambda said, at=(job, name): f"{at}: {said}")
