"""The second environment is what it claims to be: ours is missing, the rest is there."""

import json

import pytest

from foreign import CHECKOUT

ATTEMPTS = """
import importlib, importlib.metadata, importlib.util, json, sys
missing = []
for name in ("umarvel_hf", "umarvel_hf.modeling", "modeling"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        missing.append(name)
try:
    importlib.metadata.version("umarvel_hf")
except importlib.metadata.PackageNotFoundError:
    missing.append("metadata")
json.dump({"missing": missing, "path": sys.path, "spec": str(importlib.util.find_spec("umarvel_hf"))}, sys.stdout)
"""


def test_our_package_is_not_installed(run_foreign, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))  # what a caller exports must not bring it back
    monkeypatch.chdir(CHECKOUT)
    seen = json.loads(run_foreign(ATTEMPTS))
    assert seen["missing"] == ["umarvel_hf", "umarvel_hf.modeling", "modeling", "metadata"]
    assert seen["spec"] == "None"
    assert str(CHECKOUT) not in seen["path"]


def test_the_libraries_are_those_of_this_environment_and_arguments_arrive(run_foreign):
    import sentence_transformers
    import transformers

    code = "import os, sys, transformers as t, sentence_transformers as s, torchvision\n"
    code += "print(t.__version__, s.__version__, *sys.argv[1:], os.environ['GREETING'], os.environ['HF_HUB_OFFLINE'])"
    versions = f"{transformers.__version__} {sentence_transformers.__version__}"
    assert run_foreign(code, "a b", 3, env={"GREETING": "hello"}) == f"{versions} a b 3 hello 1\n"


@pytest.mark.parametrize("code", ["raise ValueError('no such row')", "import warnings; warnings.warn('no such row')"])
def test_a_failure_or_a_warning_raises_with_its_message(run_foreign, code):
    with pytest.raises(AssertionError, match="no such row"):
        run_foreign(code)
