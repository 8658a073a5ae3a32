"""A stand-in for the hub: a server on this machine with the few addresses that huggingface_hub calls."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (tunable-ops[hub])")
pytest.importorskip("safetensors", reason="safetensors is not installed (tunable-ops[train])")

from huggingface_hub import constants


class Hub:
    """Repositories by name: their commits, oldest first, each a dict from file to bytes; and what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.asked: list[tuple[str, str]] = []
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """Make a commit on top of what is there and return its hash."""
        commits = self.repositories.setdefault(name, [])
        commits.append({**(commits[-1] if commits else {}), **files})
        return sha(len(commits) - 1)

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return hash and files of a revision."""
        commits = self.repositories.get(name, [])
        for place in range(len(commits)):
            if revision == sha(place) or (revision == "main" and place == len(commits) - 1):
                return sha(place), commits[place]
        return None


def sha(place: int) -> str:
    return hashlib.sha1(str(place).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.reply({"error": code}, 404, X_Error_Code=code, X_Error_Message=code)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.hub.asked.append(("POST", self.path))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.hub.private.setdefault(name, "private" in json.dumps(asked))
            self.hub.repositories.setdefault(name, [{".gitattributes": b""}])
            return self.reply({"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", self.path):
            files = json.loads(body)["files"]
            modes = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]
            return self.reply({"files": modes})
        if found := re.fullmatch(r"/api/models/(.+)/commit/(.+)", self.path):
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.hub.messages += [line["value"]["summary"] for line in lines if line["key"] == "header"]
            commit = self.hub.add(found[1], files)
            url = f"http://{self.headers['Host']}/{found[1]}/commit/{commit}"
            return self.reply({"success": True, "commitOid": commit, "commitUrl": url})
        return self.reply({}, 200)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        self.hub.asked.append((self.command, path))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            if found[1] not in self.hub.repositories:
                return self.missing("RepoNotFound")
            at = self.hub.at(found[1], found[2])
            if at is None:
                return self.missing("RevisionNotFound")
            entries = [{"type": "file", "path": name, "size": len(data), "oid": sha(0)} for name, data in at[1].items()]
            return self.reply(entries)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if found[1] not in self.hub.repositories:
                return self.missing("RepoNotFound")
            at = self.hub.at(found[1], found[2])
            if at is None:
                return self.missing("RevisionNotFound")
            if found[3] not in at[1]:
                return self.missing("EntryNotFound")
            data = at[1][found[3]]
            return self.reply(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=at[0])
        return self.missing("RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, which huggingface_hub takes for the hub, with a cache of its own."""
    stand_in = Hub()
    handler = type("ThisHandler", (Handler,), {"hub": stand_in})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    yield stand_in
    server.shutdown()
    server.server_close()
