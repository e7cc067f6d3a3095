"""
A Hub on loopback: the part of the Hugging Face HTTP API that huggingface_hub, transformers and datasets use to push
and to load, as a real server for the real clients, with faults on demand.

    with Hub(folder) as hub:
        subprocess.run([...], env=hub.environment(folder / "home"))
        hub.fault("GET", r"/cdn/", status=503, times=2)     # or drop_after=bytes, delay=seconds, before=function
        hub.users.pop(token)                                # which has expired
        hub.requests                                        # what was asked, in order

Large files go through LFS and, as on the real Hub, to another origin. The clients read their variables when they are
imported: the server must run before.
"""

import base64
import hashlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


# In the place of .gitattributes.
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".tar", ".jpg", ".jpeg", ".png", ".npy", ".tiff")
WRITE_TOKEN, OTHER_TOKEN, READ_TOKEN = "hf_write", "hf_other", "hf_read"


class HubError(Exception):
    """An answer other than success; `code` is what the clients tell errors apart by (X-Error-Code)."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass
class File:
    oid: str  # git's name for the content, or for the pointer to it
    size: int
    sha256: str | None = None  # of LFS files


@dataclass
class Commit:
    files: dict[str, File]
    title: str
    parent: str | None


@dataclass
class Repository:
    kind: str
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, File]) -> str:
        parent = self.branches.get(branch)
        sha = hashlib.sha1(
            f"{self.kind} {self.name} {title} {parent} {len(self.commits)} {files}".encode()
        ).hexdigest()
        self.commits[sha] = Commit(files, title, parent)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str | None) -> str:
        revision = revision or "main"
        sha = self.branches.get(revision) or self.tags.get(revision)
        if sha is None and revision in self.commits:
            sha = revision
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


@dataclass
class Fault:
    """What happens to the next `times` requests that match."""

    method: str
    pattern: str
    times: int
    status: int | None
    drop_after: int | None
    delay: float
    before: Callable[[], object] | None


@dataclass
class Request:
    method: str
    path: str
    status: int
    range: str | None
    sent: int  # bytes of the body
    token: str | None


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away is no error
            super().handle_error(request, client_address)


class Hub:
    """
    Args:
        folder: Where the contents of files lie.
        page_size: Entries of one page of a listing.
    """

    organisation = "org"

    def __init__(self, folder: Path, page_size: int = 1000):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.page_size = page_size
        # Token -> user, and whether it may write: to the user's own namespace and to "org".
        self.users = {WRITE_TOKEN: ("me", True), OTHER_TOKEN: ("other", True), READ_TOKEN: ("me", False)}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.active = self.most_active = 0  # requests under way at once
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url = f"http://127.0.0.1:{self._servers[0].server_address[1]}"
        self.cdn_url = f"http://localhost:{self._servers[1].server_address[1]}"  # another host, to some clients

    def __enter__(self) -> "Hub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def variables(self, home: Path, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """The environment variables that point the clients here."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def environment(self, home: Path, token: str | None = WRITE_TOKEN, **extra: str) -> dict[str, str]:
        """The environment of a process with a cache of its own."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        return ours | self.variables(home, token) | extra

    def fault(
        self,
        method: str,
        pattern: str,
        times: int = 1,
        status: int | None = None,
        drop_after: int | None = None,
        delay: float = 0,
        before: Callable[[], object] | None = None,
    ) -> None:
        """
        Lets the next `times` requests whose method is `method` and whose path holds `pattern` (a regular expression)
        end with a status, break off after a number of bytes of the body, or wait, some seconds or for a function.
        """
        self.faults.append(Fault(method, pattern, times, status, drop_after, delay, before))

    def blob(self, key: str) -> Path:
        return self.folder / key

    def store(self, key: str, data: bytes) -> None:
        unfinished = self.blob(f"{key}.{threading.get_ident()}")
        unfinished.write_bytes(data)
        os.replace(unfinished, self.blob(key))


_REPOSITORY = r"/api/(models|datasets)/([^/]+/[^/]+)"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    hub: Hub

    routes = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("GET", _REPOSITORY + r"(?:/revision/([^/]+))?", "info"),
        ("GET", _REPOSITORY + r"/tree/([^/]+)(?:/(.*))?", "tree"),
        ("POST", _REPOSITORY + r"/paths-info/([^/]+)", "paths_info"),
        ("GET", _REPOSITORY + r"/refs", "refs"),
        ("GET", _REPOSITORY + r"/auth-check(/write)?", "auth_check"),
        ("POST", _REPOSITORY + r"/(branch|tag)/([^/]+)", "add_ref"),
        ("POST", _REPOSITORY + r"/preupload/([^/]+)", "preupload"),
        ("POST", _REPOSITORY + r"/commit/([^/]+)", "commit"),
        ("POST", r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs-upload/([0-9a-f]{64})", "lfs_put"),
        ("POST", r"/lfs-verify", "lfs_verify"),
        ("GET", r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "download"),
        ("GET", r"/cdn/([0-9a-f]{64})/.*", "download_lfs"),
    ]

    def handle_request(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.status = self.sent = 0
        self.fault = self._take_fault()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        with hub.lock:
            hub.active += 1
            hub.most_active = max(hub.active, hub.most_active)
        try:
            time.sleep(self.fault.delay)
            if self.fault.before is not None:
                self.fault.before()
            size, drop_after = int(self.headers.get("Content-Length") or 0), self.fault.drop_after
            self.body = self.rfile.read(size if drop_after is None else min(drop_after, size))
            if drop_after is not None and size:
                return self._hang_up()
            if self.fault.status is not None:
                raise HubError(self.fault.status, "injected fault")
            if token is not None and token not in hub.users:
                raise HubError(401, "Invalid credentials in Authorization header")
            self.user, self.may_write = hub.users.get(token, (None, False))
            for method, pattern, name in self.routes:
                match = re.fullmatch(pattern, url.path)
                if match and method == self.command.replace("HEAD", "GET"):
                    return getattr(self, name)(*(group and unquote(group) for group in match.groups()))
            raise HubError(404, f"no route for {self.command} {url.path}")
        except HubError as error:
            headers = {"X-Error-Message": str(error), "X-Error-Code": error.code}
            self._answer({"error": str(error)}, error.status, headers)
        except ConnectionError:
            self.close_connection = True
        except Exception as error:  # 501, which the clients do not retry
            traceback.print_exc()
            self._answer({"error": f"a defect of this server: {error!r}"}, 501)
        finally:
            with hub.lock:
                hub.active -= 1
            request = Request(self.command, self.path, self.status, self.headers.get("Range"), self.sent, token)
            hub.requests.append(request)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def log_message(self, *arguments: Any) -> None:
        pass

    def _take_fault(self) -> Fault:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times and fault.method == self.command and re.search(fault.pattern, self.path):
                    fault.times -= 1
                    return fault
        return Fault("", "", 0, None, None, 0, None)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, body: Any = b"", status: int = 200, headers: dict[str, Any] | None = None) -> None:
        """Sends bytes, or what becomes JSON; the asked range of it where there is one."""
        headers = dict(headers or {})
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked and status == 200 and self.command == "GET":
            first, last = asked.groups()
            total = len(body)
            start = int(first) if first else max(total - int(last), 0)
            end = min(int(last) + 1, total) if first and last else total
            if start < total:
                status, body, span = 206, body[start:end], f"{start}-{end - 1}"
            else:
                status, body, span = 416, b"", "*"
            headers["Content-Range"] = f"bytes {span}/{total}"
        self.status = status
        self.send_response(status)
        for key, value in (headers | {"Content-Length": len(body)}).items():
            if value is not None:
                self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            drop_after = self.fault.drop_after if status < 300 else None
            self.sent = len(body[:drop_after])
            self.wfile.write(body[:drop_after])
            if drop_after is not None:
                self._hang_up()

    # Accounts and repositories

    def _may_use(self, name: str) -> bool:
        return self.user is not None and name.split("/")[0] in (self.user, self.hub.organisation)

    def _repository(self, kind: str | None, name: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get((kind or "models", name))
        # A private one looks like a missing one.
        if repository is None or (repository.private and not self._may_use(name)):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and not (self.may_write and self._may_use(name)):
            raise HubError(403 if self.user else 401, "You don't have the rights to write here")
        return repository

    def whoami(self) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        role = "write" if self.may_write else "read"
        organisations = [{"type": "org", "name": self.hub.organisation}]
        token = {"accessToken": {"role": role}}
        self._answer({"type": "user", "name": self.user, "fullname": self.user, "orgs": organisations, "auth": token})

    def validate_yaml(self) -> None:
        block = re.match(r"\s*---\n(.*?)\n---", json.loads(self.body)["content"], re.DOTALL)
        errors, warnings = [], []
        try:
            metadata = yaml.safe_load(block[1]) if block else None
        except yaml.YAMLError as error:
            metadata, errors = {}, [{"message": f"invalid YAML: {error}"}]
        if not metadata and not errors:
            warnings = [{"message": "empty or missing yaml metadata in repo card"}]
        if metadata and not isinstance(metadata.get("license", ""), (str, list)):
            errors = [{"message": '"license" must be a string'}]
        self._answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def create(self) -> None:
        request = json.loads(self.body)
        kind = (request.get("type") or "model") + "s"
        name = f"{request.get('organization') or self.user}/{request['name']}"
        if not (self.may_write and self._may_use(name)):
            raise HubError(403 if self.user else 401, f"You don't have the rights to create {name}")
        prefix = "" if kind == "models" else f"{kind}/"
        answer = {"url": f"{self.hub.url}/{prefix}{name}"}
        with self.hub.lock:
            if (kind, name) in self.hub.repositories:
                return self._answer(answer | {"error": "You already created this repository"}, 409)
            repository = Repository(kind, name, private=request.get("visibility") == "private")
            repository.commit("main", "initial commit", {})
            self.hub.repositories[kind, name] = repository
        self._answer(answer)

    def info(self, kind: str, name: str, revision: str | None) -> None:
        repository = self._repository(kind, name)
        sha = repository.resolve(revision)
        self._answer(
            {
                "id": name,
                "sha": sha,
                "private": repository.private,
                "tags": [],
                "siblings": [{"rfilename": path} for path in repository.commits[sha].files],
            }
        )

    def auth_check(self, kind: str, name: str, write: str | None) -> None:
        self._repository(kind, name, write=write is not None)
        self._answer({})

    # Listings

    @staticmethod
    def _file_entry(path: str, file: File) -> dict:
        entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.sha256 is not None:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
        return entry

    @staticmethod
    def _folder_entry(path: str) -> dict:
        return {"type": "directory", "oid": git_oid(path.encode()), "size": 0, "path": path}

    def tree(self, kind: str, name: str, revision: str, path: str | None) -> None:
        repository = self._repository(kind, name)
        files = repository.commits[repository.resolve(revision)].files
        prefix = f"{path.strip('/')}/" if path else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {}
        for file_path, file in files.items():
            if file_path.startswith(prefix):
                parts = file_path.removeprefix(prefix).split("/")
                folders = list(itertools.accumulate(parts[:-1], "{}/{}".format))
                for folder in folders if recursive else folders[:1]:
                    entries[prefix + folder] = self._folder_entry(prefix + folder)
                if recursive or not folders:
                    entries[file_path] = self._file_entry(file_path, file)
        if path and not entries:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        start = int(self.query.get("cursor", ["0"])[0])
        end = start + self.hub.page_size
        link = None
        if end < len(entries):
            query = "&".join(f"{key}={values[0]}" for key, values in (self.query | {"cursor": [str(end)]}).items())
            link = f'<{self.hub.url}{urlsplit(self.path).path}?{query}>; rel="next"'
        self._answer(list(entries.values())[start:end], headers={"Link": link})

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name)
        files = repository.commits[repository.resolve(revision)].files
        entries = []
        for path in parse_qs(self.body.decode()).get("paths", []):
            if path in files:
                entries.append(self._file_entry(path, files[path]))
            elif any(file.startswith(f"{path}/") for file in files):
                entries.append(self._folder_entry(path))
        self._answer(entries)

    def refs(self, kind: str, name: str) -> None:
        repository = self._repository(kind, name)
        listed = {
            group: [
                {"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": sha} for ref, sha in references.items()
            ]
            for group, folder, references in (
                ("branches", "heads", repository.branches),
                ("tags", "tags", repository.tags),
            )
        }
        self._answer(listed | {"converts": []})

    def add_ref(self, kind: str, name: str, group: str, revision: str) -> None:
        repository = self._repository(kind, name, write=True)
        request = json.loads(self.body or b"{}")
        if group == "branch":
            references, new, sha = repository.branches, revision, repository.resolve(request.get("startingPoint"))
        else:
            references, new, sha = repository.tags, request["tag"], repository.resolve(revision)
        if new in references:
            raise HubError(409, f"Reference already exists: {new}")
        references[new] = sha
        self._answer({}, 201)

    # Uploads

    def preupload(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name, write=True)
        files = repository.commits[repository.resolve(revision)].files
        answers = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].lower().endswith(LFS_SUFFIXES) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in files:
                known = files[file["path"]]
                answer["oid"] = known.sha256 or known.oid
            answers.append(answer)
        self._answer({"files": answers})

    def lfs_batch(self, kind: str | None, name: str) -> None:
        self._repository(kind, name, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if not self.hub.blob(item["oid"]).exists():
                upload = {"href": f"{self.hub.cdn_url}/lfs-upload/{item['oid']}"}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs-verify"}}
            objects.append(answer)
        self._answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise HubError(400, "content does not match its sha256")
        self.hub.store(sha256, self.body)
        self._answer()

    def lfs_verify(self) -> None:
        request = json.loads(self.body)
        blob = self.hub.blob(request["oid"])
        self._answer({}, 200 if blob.exists() and blob.stat().st_size == request["size"] else 404)

    def commit(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name, write=True)
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        with self.hub.lock:
            parent = repository.resolve(revision)
            if revision not in repository.branches:
                raise HubError(400, f"{revision} is not a branch")
            if not parent.startswith(header["value"].get("parentCommit", "")):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repository.commits[parent].files)
            for operation in operations:
                self._apply(files, operation["key"], operation["value"])
            sha = repository.commit(revision, header["value"]["summary"], files)
        self._answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def _apply(self, files: dict[str, File], key: str, value: dict) -> None:
        path = value["path"].rstrip("/")
        if key == "file":
            data = base64.b64decode(value["content"])
            self.hub.store(git_oid(data), data)
            files[path] = File(git_oid(data), len(data))
        elif key == "lfsFile":
            sha256 = value["oid"]
            if not self.hub.blob(sha256).exists():
                raise HubError(400, f"LFS object {sha256} has not been uploaded")
            size = self.hub.blob(sha256).stat().st_size
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
            files[path] = File(git_oid(pointer.encode()), size, sha256)
        else:  # deletedFile, deletedFolder
            for file in [file for file in files if file == path or file.startswith(f"{path}/")]:
                del files[file]

    # Downloads

    def download(self, kind: str | None, name: str, revision: str, path: str) -> None:
        repository = self._repository(kind, name)
        sha = repository.resolve(revision)
        file = repository.commits[sha].files.get(path)
        if file is None:
            self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.sha256 or file.oid}"', "Accept-Ranges": "bytes"}
        if file.sha256 is None:
            self._answer(self.hub.blob(file.oid).read_bytes(), headers=headers)
        else:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": file.size}
            headers["Location"] = f"{self.hub.cdn_url}/cdn/{file.sha256}/{path}"
            self._answer(b"", 302, headers)

    def download_lfs(self, sha256: str) -> None:
        if self.headers.get("Authorization"):
            raise HubError(400, "the token must not go to another origin")
        headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}
        self._answer(self.hub.blob(sha256).read_bytes(), headers=headers)
