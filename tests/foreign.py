"""A second Python environment, with every package of this one but ours: someone who has only a checkpoint.

conftest.py imports the fixture ``run_foreign`` from here. A wheel unpacked into ``ForeignEnvironment.packages`` makes
the environment one where our package is installed, and nothing of the checkout.
"""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
# huggingface_hub 2.4 uploads large files by an argument that its HTTP client has deprecated.
# peft 0.21 asks transformers by a name that 5.23 has renamed.
WARNINGS_ARE_ERRORS = ["-W", "error", "-W", "ignore:Use 'content=:DeprecationWarning"]
WARNINGS_ARE_ERRORS += ["-W", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"]
SITECUSTOMIZE = "from torchvision_without_operators import ensure_torchvision\n\nensure_torchvision()\n"


class ForeignEnvironment:
    """A virtual environment below ``root`` that links the packages of the running one; made without a network."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        venv.create(self.root, with_pip=False, symlinks=os.name != "nt")
        base = {"base": str(self.root), "platbase": str(self.root)}
        self.python = Path(sysconfig.get_path("scripts", scheme="venv", vars=base)) / Path(sys.executable).name
        self.packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=base))
        self.home = self.root / "home"
        self.home.mkdir()
        for package in installed_packages():
            (self.packages / package.name).symlink_to(package, target_is_directory=package.is_dir())
        # The checkpoint's reader has a torchvision that works; ours may need the same help as the test process.
        shutil.copy(CHECKOUT / "umarvel_hf/_torchvision.py", self.packages / "torchvision_without_operators.py")
        (self.packages / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def run(self, code: str, *args: object, env: dict[str, str] | None = None, timeout_s: float = 300) -> str:
        """Run a snippet, its warnings errors, in an empty folder and offline; ``env`` adds to the environment.

        Returns:
            What it printed to stdout. ``AssertionError`` with its stderr if it failed.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment = inherited | {"HF_HOME": str(self.root / "huggingface"), "HF_HUB_OFFLINE": "1"} | (env or {})
        command = [str(self.python), "-I", *WARNINGS_ARE_ERRORS, "-c", code, *map(str, args)]
        done = subprocess.run(
            command, cwd=self.home, env=environment, timeout=timeout_s, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def installed_packages() -> list[Path]:
    """All in this environment's package folders except ours and the ``.pth`` files, which would bring ours back."""
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            ours = "umarvel_hf" in path.name
            if not ours and path.suffix != ".pth" and path.name not in ("__pycache__", "sitecustomize.py"):
                found.setdefault(path.name, path)
    return list(found.values())


@pytest.fixture(scope="session")
def foreign_environment(tmp_path_factory):
    return ForeignEnvironment(tmp_path_factory.mktemp("foreign") / "environment")


@pytest.fixture(scope="session")
def run_foreign(foreign_environment):
    """``run_foreign(code, *args, env=...) -> stdout``: run a snippet where umarvel_hf is not installed."""
    return foreign_environment.run
