"""A Hugging Face Hub in memory, on the loopback interface: enough to create, fill, list and read model repositories.

    with HubServer() as hub:
        subprocess.run([...], env=os.environ | hub.environment(tmp_path))

The libraries read ``HF_ENDPOINT`` when they are imported, so whoever talks to it runs in a process of its own.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_FILE = re.compile(r".*\.(safetensors|bin|png|zip)")  # stored by LFS; the server decides which


@dataclass(frozen=True)
class Blob:
    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    message: str
    files: dict[str, Blob] = field(default_factory=dict)

    @property
    def oid(self) -> str:
        listing = [self.message, *(f"{path} {blob.oid}" for path, blob in sorted(self.files.items()))]
        return hashlib.sha1("\n".join(listing).encode()).hexdigest()


class HubError(Exception):
    """Answered as 404 with the code by which huggingface_hub chooses its own exception."""


class HubServer:
    """``repositories`` maps ``owner/name`` to its commits on ``main``; ``branches`` and ``tags`` name more of them.

    ``gated`` repositories are read with the token ``hf_let_in`` only; nothing is written without a token, nor with
    ``hf_read``.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, list[Commit]] = {}
        self.branches: dict[tuple[str, str], list[Commit]] = {}
        self.gated: set[str] = set()
        self.large_files: dict[str, bytes] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fill(self, repo: str, folder: Path) -> None:
        """Put the files of a folder into a repository."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        blobs = {name: Blob(path.read_bytes(), bool(LARGE_FILE.fullmatch(name))) for name, path in files.items()}
        self.repositories.setdefault(repo, [Commit("initial commit")]).append(Commit("fill", blobs))

    def environment(self, home: Path) -> dict[str, str]:
        """The variables by which a process reaches this server, with a cache of its own in ``home``."""
        settings = {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_test", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        return settings | {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def history(self, repo: str, branch: str) -> list[Commit] | None:
        """The commits of a branch."""
        return self.repositories[repo] if branch == "main" else self.branches.get((repo, branch))

    def of(self, repo: str) -> dict[str, list[Commit]]:
        """The other branches of a repository."""
        return {branch: commits for (owner, branch), commits in self.branches.items() if owner == repo}

    def commit(self, repo: str, revision: str = "main") -> Commit:
        if repo not in self.repositories:
            raise HubError("RepoNotFound")
        history = self.history(repo, revision) or []
        all_commits = [one for branch in (self.repositories[repo], *self.of(repo).values()) for one in branch]
        found = history[-1:] or [commit for commit in all_commits if commit.oid == revision]
        if not found:
            raise HubError("RevisionNotFound")
        return found[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query, self.body = parse_qs(url.query), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        method = "GET" if self.command == "HEAD" else self.command
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if method == "POST" and token in ("", "hf_read") and not url.path.endswith("/validate-yaml"):
            status = 403 if token else 401
            return self.send({"error": "you may not write here"}, status)
        repo = re.match(r"/(?:api/models/)?([^/]+/[^/]+)/(?:resolve|tree)/", unquote(url.path))
        if repo and repo[1] in self.hub.gated and token != "hf_let_in":
            return self.send({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        for verb, pattern, route in ROUTES:
            if verb == method and (match := re.fullmatch(pattern, unquote(url.path).strip("/"))):
                try:
                    return route(self, **match.groupdict())
                except HubError as error:
                    return self.send({"error": str(error)}, 404, {"X-Error-Code": str(error)})
        return self.send({"error": f"this server has no route for {self.command} {self.path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def send(self, answer: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def validate_card(self) -> None:
        self.send({"errors": [], "warnings": []})

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        status = 409 if repo in self.hub.repositories else 200
        self.hub.repositories.setdefault(repo, [Commit("initial commit")])
        self.send({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo}, status)

    def choose_upload_modes(self, repo: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        for file in files:
            file |= {"uploadMode": "lfs" if LARGE_FILE.fullmatch(file["path"]) else "regular", "shouldIgnore": False}
        self.send({"files": files})

    def place_large_files(self, repo: str) -> None:
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.large_files:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
        self.send({"transfer": "basic", "objects": objects})

    def upload_large_file(self, oid: str) -> None:
        self.hub.large_files[oid] = self.body
        self.send({})

    def add_commit(self, repo: str, revision: str) -> None:
        message, files = "", dict(self.hub.commit(repo, revision).files)
        for change in map(json.loads, self.body.splitlines()):
            value = change["value"]
            match change["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), large=False)
                case "lfsFile":
                    files[value["path"]] = Blob(self.hub.large_files[value["oid"]], large=True)
                case "deletedFile":
                    del files[value["path"]]
        branch = self.hub.history(repo, revision)
        assert branch is not None  # its last commit was found
        branch.append(commit := Commit(message, files))
        url = f"{self.hub.url}/{repo}/commit/{commit.oid}"
        self.send({"commitUrl": url, "commitOid": commit.oid, "success": True, "hookOutput": ""})

    def create_branch(self, repo: str, branch: str) -> None:
        if (repo, branch) in self.hub.branches:
            return self.send({"error": "it exists"}, 409)
        self.hub.branches[repo, branch] = list(self.hub.repositories[repo])
        return self.send({})

    def describe(self, repo: str, revision: str | None) -> None:
        commit = self.hub.commit(repo, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        self.send({"id": repo, "modelId": repo, "sha": commit.oid, "private": False, "tags": [], "siblings": siblings})

    def list_folder(self, repo: str, revision: str, folder: str | None) -> None:
        start = f"{folder}/" if folder else ""
        inside = {path: blob for path, blob in self.hub.commit(repo, revision).files.items() if path.startswith(start)}
        if folder and not inside:
            raise HubError("EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() == "true"
        listed: dict[str, dict[str, object]] = {}
        for path, blob in sorted(inside.items()):
            name, nested, _ = path.removeprefix(start).partition("/")
            size = len(blob.content)
            if nested and not recursive:
                listed[start + name] = {"type": "directory", "path": start + name, "oid": "0" * 40}
            else:
                lfs = {"lfs": {"oid": blob.oid, "size": size, "pointerSize": 130}} if blob.large else {}
                listed[path] = {"type": "file", "path": path, "size": size, "oid": blob.oid, **lfs}
        self.send(list(listed.values()))

    def read(self, repo: str, revision: str, path: str) -> None:
        commit = self.hub.commit(repo, revision)
        if path not in commit.files:
            return self.send({}, 404, {"X-Repo-Commit": commit.oid, "X-Error-Code": "EntryNotFound"})
        blob = commit.files[path]
        linked = {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.content))} if blob.large else {}
        return self.send(blob.content, 200, {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"', **linked})


REPO, REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("POST", "api/validate-yaml", _Handler.validate_card),
    ("POST", "api/repos/create", _Handler.create),
    ("POST", f"api/models/{REPO}/preupload/{REVISION}", _Handler.choose_upload_modes),
    ("POST", f"{REPO}.git/info/lfs/objects/batch", _Handler.place_large_files),
    ("PUT", r"lfs/(?P<oid>[0-9a-f]{64})", _Handler.upload_large_file),
    ("POST", f"api/models/{REPO}/commit/{REVISION}", _Handler.add_commit),
    ("POST", f"api/models/{REPO}/branch/(?P<branch>[^/]+)", _Handler.create_branch),
    ("GET", f"api/models/{REPO}(?:/revision/{REVISION})?", _Handler.describe),
    ("GET", f"api/models/{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", _Handler.list_folder),
    ("GET", f"{REPO}/resolve/{REVISION}/(?P<path>.+)", _Handler.read),
]
