"""Model repositories of the Hugging Face Hub, fetched and pushed; what goes wrong says what to do."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "README.md"]
CODE = ["*.py"]
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
NOT_PUSHED = ["checkpoint-*", ".*", "*.partial"]  # of a trainer, of tools, of writing that was broken off


def local_folder(source: str | Path, *, revision: str | None = None, code: bool = False) -> Path:
    """The folder of a checkpoint; that of a repository is downloaded, or taken from the cache.

    Args:
        source: Folder, or Hub id such as ``Qwen/Qwen2-VL-2B-Instruct``, which may end in ``@`` and a revision.
        revision: Branch, tag or commit of a repository; a commit pins what is loaded, its code included.
        code: Whether the code that came with the checkpoint is fetched, too, to be run.

    Raises:
        FileNotFoundError: There is no such folder, repository or revision, or the folder holds no checkpoint.
        PermissionError: The repository is gated or private.
        ConnectionError: It is not in the cache and the Hub cannot be reached, or must not be.
        ValueError: A folder is given with a revision, or what is given can be neither.
    """
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {path} is a folder. Leave it out, or give a Hub id.")
        _check_holds_checkpoint(path)
        return path
    if path.is_absolute() or str(source).startswith("."):
        raise FileNotFoundError(f"The folder {str(source)!r} does not exist; give a checkpoint's folder or its Hub id.")
    repo, named = split_revision(source)
    if named and revision is not None:
        raise ValueError(f"two revisions are given, {source} and {revision!r}; give one.")
    revision = revision or named
    with _explained(repo, revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=WEIGHTS + (CODE if code else [])))


def _check_holds_checkpoint(folder: Path) -> None:
    """Of a model or an adapter; a run's folder has its model inside."""
    if not _holds_checkpoint(folder):
        inner = folder / "model"
        advice = f"a run left its model in {inner}: give that" if _holds_checkpoint(inner) else "give the folder of one"
        raise FileNotFoundError(f"{folder} has no config.json, so it is no checkpoint; {advice}.")


def _holds_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def split_revision(source: str | Path) -> tuple[str, str | None]:
    """``OWNER/NAME@REVISION`` in two; a folder's name is one."""
    repo, _, revision = str(source).partition("@")
    return (repo, revision or None) if not Path(source).is_dir() else (str(source), None)


def is_repository(source: str | Path) -> bool:
    """Whether this is the id of a repository, ``OWNER/NAME``, and no folder here."""
    return HUB_ID.fullmatch(split_revision(source)[0]) is not None and not Path(source).exists()


def name_of(source: str | Path) -> str:
    """What a model is called that was asked for so: its id without a revision, or the name of its folder."""
    return split_revision(source)[0] if is_repository(source) else Path(source).name


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Push the folder of a checkpoint (an embedder, a re-ranker or an adapter) to a model repository.

    The repository is made where there is none. All of the folder is pushed but hidden files and a trainer's
    checkpoints; files of the repository that the folder lacks stay.

    Args:
        repo: Such as ``me/my-embedder``.
        private: Of a new repository; None: as the account or organisation has it.
        revision: Branch, made where there is none; None: ``main``.
        message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no checkpoint.
        ValueError: ``repo`` can be no repository's name.
        PermissionError: No token, or one that may not write there.
        ConnectionError: The Hub cannot be reached, or must not be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {str(folder)!r} does not exist; give the folder of a checkpoint.")
    _check_holds_checkpoint(folder)
    if not is_offline_mode() and get_token() is None:
        raise PermissionError(f"There is no token to push to {repo} with; {LOG_IN} (a token that may write).")
    api = HfApi()
    with _explained(repo, revision, writing=True):
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id  # with its owner
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=message or f"Upload {folder.name} with umarvel_hf",
            ignore_patterns=NOT_PUSHED,
        )
    return str(commit.commit_url)


@contextmanager
def _explained(repo: str, revision: str | None, *, writing: bool = False) -> Iterator[None]:
    """Errors of the Hub in one sentence each; those that name a cause stay below it."""
    place = os.environ.get("HF_ENDPOINT", "the Hub")
    try:
        yield
    except HFValidationError as error:
        raise ValueError(
            f"{repo!r} is neither a folder nor a Hub id; give a folder that exists, or an id such as OWNER/NAME."
        ) from error
    except GatedRepoError as error:
        raise PermissionError(
            f"{repo} is gated: accept its terms on {place}, then {LOG_IN}, with an account that was let in."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} has no revision {revision!r}; give one of its branches, tags or commits."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} is neither a folder here nor a repository on {place} that you may see; check the spelling, and "
            f"{LOG_IN} where it is private."
        ) from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"{repo} cannot be {'pushed' if writing else 'fetched'} while HF_HUB_OFFLINE is set; unset it."
        ) from error
    except LocalEntryNotFoundError as error:
        told = "HF_HUB_OFFLINE is set: unset it once to fetch it" if is_offline_mode() else "check the connection"
        at = f" at revision {revision!r}" if revision else ""
        raise ConnectionError(
            f"{repo}{at} is no folder and not in the cache, and {place} was not reached; {told}, or give a folder."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repo} lacks a file: {_first_line(error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"{place} refuses {'to write to' if writing else 'access to'} {repo} ({status}); {LOG_IN}, with a "
                f"token that may{' write there' if writing else ''}."
            ) from error
        raise ConnectionError(f"{place} answered {status} for {repo}: {_first_line(error)}") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # whichever of its generations the host is built on
            raise
        raise ConnectionError(
            f"{place} was not reached for {repo} ({_first_line(error)}); check the connection."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
