"""transformers imports beside a torchvision whose operators do not load."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

IMPORT_TRANSFORMERS = "from transformers import AutoProcessor, Qwen2VLModel, Qwen2VLProcessor"
CALL = "from umarvel_hf._torchvision import ensure_torchvision; ensure_torchvision()"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def operators_missing():
    if run("import torchvision").returncode == 0:
        pytest.skip("torchvision imports by itself here: umarvel_hf/_torchvision.py has nothing to do")


@pytest.mark.slow
@pytest.mark.usefixtures("operators_missing")
def test_transformers_imports_only_after_the_call():
    assert "operator torchvision::nms does not exist" in run("import torchvision").stderr
    assert "Could not import module" in run(IMPORT_TRANSFORMERS).stderr
    after = run(f"{CALL}; {CALL}; {IMPORT_TRANSFORMERS}")
    assert after.returncode == 0, after.stderr


def test_a_torchvision_that_is_fine_is_left_alone():
    fake = "import sys, types; fake = sys.modules['torchvision'] = types.ModuleType('torchvision')"
    done = run(f"{fake}; {CALL}; assert sys.modules['torchvision'] is fake and 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_without_torchvision_nothing_happens():
    done = run(f"import sys; sys.modules['torchvision'] = None; {CALL}; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("operators_missing")
@pytest.mark.parametrize("exif_orientation", [1, 6])
def test_images_are_decoded_as_pillow_does(tmp_path, exif_orientation):
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from transformers.image_utils import load_image, load_image_as_tensor

    path = tmp_path / "gradient.png"
    exif = Image.Exif()
    exif[0x0112] = exif_orientation
    Image.fromarray(np.arange(4 * 6 * 4, dtype=np.uint8).reshape(4, 6, 4)).save(path, exif=exif)

    expected = torch.from_numpy(np.array(load_image(str(path)))).permute(2, 0, 1)  # (3, height, width)
    encoded = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    assert expected.shape == ((3, 4, 6) if exif_orientation == 1 else (3, 6, 4))
    assert torch.equal(load_image_as_tensor(str(path)), expected)
    assert torch.equal(decode_image(path, mode="RGB", apply_exif_orientation=True), expected)
    assert torch.equal(decode_image(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True), expected)


@pytest.mark.usefixtures("operators_missing")
def test_a_mode_it_cannot_decode_is_refused():
    import torch
    from torchvision.io import decode_image

    encoded = io.BytesIO()
    Image.new("L", (2, 2)).save(encoded, "PNG")
    with pytest.raises(ValueError, match="mode is 'RGB' only, got 'GRAY'"):
        decode_image(torch.frombuffer(bytearray(encoded.getvalue()), dtype=torch.uint8), mode="gray")
