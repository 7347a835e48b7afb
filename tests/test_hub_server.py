"""The local Hub server answers huggingface_hub as the real one does."""

import os
import subprocess
import sys

import pytest

from foreign import WARNINGS_ARE_ERRORS
from hub_server import HubServer

JOURNEY = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

api, source = HfApi(), Path(sys.argv[1])
assert api.create_repo("tester/shapes").repo_id == "tester/shapes"
api.create_repo("tester/shapes", exist_ok=True)
first = api.upload_folder(repo_id="tester/shapes", folder_path=source, commit_message="two files").oid
api.upload_file(repo_id="tester/shapes", path_or_fileobj=b"{}", path_in_repo="config.json")
assert api.list_repo_files("tester/shapes") == ["1_Normalize/config.json", "config.json", "model.safetensors"]
assert api.model_info("tester/shapes", files_metadata=False).sha != first
listed = {entry.path: entry for entry in api.list_repo_tree("tester/shapes")}
assert sorted(listed) == ["1_Normalize", "config.json", "model.safetensors"]
assert listed["model.safetensors"].lfs.size == 1000 and listed["config.json"].lfs is None

copy = Path(api.snapshot_download("tester/shapes"))
assert (copy / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
assert (copy / "1_Normalize/config.json").read_text() == "[]" and (copy / "config.json").read_text() == "{}"
assert not (Path(api.snapshot_download("tester/shapes", revision=first)) / "config.json").exists()

api.delete_file("config.json", repo_id="tester/shapes")
assert not api.file_exists("tester/shapes", "config.json")
for error, call in [
    (RepositoryNotFoundError, lambda: api.model_info("tester/circles")),
    (RepositoryNotFoundError, lambda: api.hf_hub_download("tester/circles", "config.json")),
    (RevisionNotFoundError, lambda: api.hf_hub_download("tester/shapes", "config.json", revision="v2")),
    (EntryNotFoundError, lambda: api.hf_hub_download("tester/shapes", "config.json")),
    (EntryNotFoundError, lambda: list(api.list_repo_tree("tester/shapes", "additional_chat_templates"))),
]:
    try:
        call()
    except error:
        continue
    raise AssertionError(f"expected {error.__name__}")
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def test_a_repository_is_made_filled_listed_and_read_back(hub, tmp_path):
    source = tmp_path / "source"
    (source / "1_Normalize").mkdir(parents=True)
    (source / "1_Normalize/config.json").write_text("[]")
    (source / "model.safetensors").write_bytes(bytes(1000))
    command = [sys.executable, *WARNINGS_ARE_ERRORS, "-c", JOURNEY, str(source)]
    environment = os.environ | hub.environment(tmp_path / "home")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [commit.message for commit in hub.repositories["tester/shapes"]][:2] == ["initial commit", "two files"]
    assert hub.commit("tester/shapes").files["model.safetensors"].large
