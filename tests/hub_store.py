"""A stand-in for the Hub that takes models: its HTTP API for accounts, repositories, LFS and commits, over real HTTP.

Files are kept by content, as the Hub does: an LFS object that is there is not asked for again. Faults are planted by
`refusals` (path's part -> answers in turn, None for none) and `cut_after` (bytes of an LFS object that are taken).
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import socket
import threading
import urllib.parse
from dataclasses import dataclass, field

import yaml
from hub_server import Served
from huggingface_hub import constants

TOKEN = "hf_standinstandinstandin"
RELATIONS = ("adapter", "merge", "quantized", "finetune")
LICENCES = ("apache-2.0", "mit", "gemma", "llama3.2", "other")
LARGE = 2000  # bytes from which on a file is an LFS object here: the tiny model has some on each side


@dataclass
class Repo:
    """One repository: its commits, oldest first, each (id, {file: content})."""

    private: bool
    commits: list = field(default_factory=list)

    @property
    def head(self):
        return self.commits[-1][0]

    @property
    def files(self):
        return self.commits[-1][1]

    def commit(self, files):
        parent = self.commits[-1][0] if self.commits else ""
        text = parent + "".join(f"{name}{hashlib.sha256(files[name]).hexdigest()}" for name in sorted(files))
        self.commits.append((hashlib.sha1(f"{len(self.commits)}{text}".encode()).hexdigest(), dict(files)))
        return self.head


@contextlib.contextmanager
def stand_in(monkeypatch):
    """A store that the Hub's client speaks to, with a token, and without waiting between its tries."""
    with HubStore().running() as store:
        monkeypatch.setattr(constants, "ENDPOINT", store.url)
        template = store.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)  # read at import
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        yield store


class HubStore(Served):
    """Accounts `me` and its organisation `team`; `log`: (method, path) of every request."""

    def __init__(self):
        self.repos, self.objects, self.refusals, self.log = {}, {}, {}, []
        self.cut_after, self.role, self.tokens, self.lock = None, "write", set(), threading.Lock()
        self.full = ""
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                store.answer(self)

            do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

        self.listen(Handler)

    def create_for(self, id, files):
        """A repository that somebody has made."""
        self.repos[id] = Repo(private=True)
        self.repos[id].commit(files)

    def puts(self):
        """The LFS objects that were sent, whole or not, in order."""
        return [path.removeprefix("lfs/") for _, path in self.log if path.startswith("lfs/")]

    def answer(self, request):
        path = urllib.parse.unquote(request.path.split("?")[0]).strip("/")
        self.log.append((request.command, path))
        self.tokens.add(request.headers.get("Authorization"))
        planted = next((answers for part, answers in self.refusals.items() if part in path and answers), None)
        refusal = planted.pop(0) if planted else None
        if path.startswith("lfs/") and not refusal:
            return self.take_object(request, path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if not refusal and path != "api/validate-yaml" and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            said = "Invalid credentials in Authorization header"
            refusal = (401, {"X-Error-Message": said}, said)
        if refusal:
            status, headers, text = refusal
            return self.send(request, {"error": text}, status, headers)
        with self.lock:
            return self.do(request, path, body)

    def do(self, request, path, body):
        of_account = {"validate-yaml": self.validate, "whoami-v2": self.whoami, "repos/create": self.create}
        if path.removeprefix("api/") in of_account:
            return of_account[path.removeprefix("api/")](request, json.loads(body or "{}"))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(request, json.loads(body))
        kind = re.match("(?:api/)?((?:spaces|datasets)/)?", path)[1] or ""
        parts = re.sub("^(api/)?(models/|spaces/|datasets/)?", "", path).split("/")
        id, rest = kind + "/".join(parts[:2]), parts[2:]
        if id not in self.repos:
            return self.send(request, {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if path.startswith("api/"):
            return self.of_repo(request, id, rest, body)
        return self.download(request, self.branch_of(id, rest[1]), rest)

    def branch_of(self, id, revision):
        """A branch, which is kept as ID@BRANCH, by its name or a commit of it; None if there is none."""
        if named := self.repos.get(id if revision == "main" else f"{id}@{revision}"):
            return named
        same = [repo for key, repo in self.repos.items() if key.partition("@")[0] == id]
        return next((repo for repo in same if revision in dict(repo.commits)), None)

    def validate(self, request, asked):
        problems = list(card_problems(asked["content"]))
        self.send(request, {"errors": [{"message": p} for p in problems]}, 400 if problems else 200)

    def whoami(self, request, _):
        auth = {"accessToken": {"role": self.role}}
        self.send(request, {"name": "me", "type": "user", "orgs": [{"name": "team"}], "auth": auth})

    def create(self, request, asked):
        id = f"{asked['organization']}/{asked['name']}"
        if asked.get("type") == "space":
            id = f"spaces/{id}"
            assert asked["sdk"] == "docker"
        elif asked.get("type") == "dataset":
            id = f"datasets/{id}"
        if id in self.repos:
            return self.send(request, {"error": "You already created this model repo"}, 409)
        self.repos[id] = Repo(private=asked.get("visibility") == "private")
        more = {"README.md": b"---\nsdk: docker\n---\n"} if id.startswith("spaces/") else {}
        self.repos[id].commit({".gitattributes": b"*.safetensors filter=lfs\n", **more})
        return self.send(request, {"url": f"{self.url}/{id}"})

    def batch(self, request, asked):
        objects = []
        for item in asked["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if self.full:
                entry["error"] = {"code": 422, "message": self.full}
            elif item["oid"] not in self.objects:
                entry["actions"] = {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}
            objects.append(entry)
        return self.send(request, {"transfer": "basic", "objects": objects})

    def take_object(self, request, path):
        size = int(request.headers["Content-Length"])
        taken = request.rfile.read(size if self.cut_after is None else min(size, self.cut_after))
        if len(taken) < size:  # as a line that is cut: no answer, no more reading
            request.close_connection = True
            return request.connection.shutdown(socket.SHUT_RDWR)
        oid = path.rpartition("/")[2]
        assert hashlib.sha256(taken).hexdigest() == oid
        self.objects[oid] = taken
        return self.send(request, {})

    def of_repo(self, request, id, rest, body):
        verb = rest[0] if rest else ""
        if verb == "branch":
            self.repos[f"{id}@{rest[1]}"] = Repo(self.repos[id].private, list(self.repos[id].commits))
            return self.send(request, {})
        repo = self.branch_of(id, rest[1]) if len(rest) > 1 else self.repos[id]
        if repo is None:
            return self.send(request, {"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if verb == "preupload":
            answer = {"files": [self.mode(repo, file) for file in json.loads(body)["files"]]}
        elif verb == "commit":
            key = id if rest[1] == "main" else f"{id}@{rest[1]}"
            return self.commit(request, key, [json.loads(line) for line in body.splitlines()])
        elif verb == "settings":
            repo.private = json.loads(body)["visibility"] == "private"
            answer = {"private": repo.private}
        elif verb == "tree":
            files = dict(repo.commits).get(rest[1], repo.files)
            answer = [entry(name, content) for name, content in sorted(files.items())]
        else:
            info = {
                "_id": "1",
                "id": id.removeprefix("spaces/").removeprefix("datasets/"),
                "modelId": id,
                "sha": repo.head,
                "private": repo.private,
            }
            answer = info | {"siblings": [{"rfilename": name} for name in repo.files]}
        return self.send(request, answer)

    def download(self, request, repo, rest):
        commit, name = (rest[1] if rest[1] in dict(repo.commits) else repo.head), "/".join(rest[2:])
        content = dict(repo.commits)[commit].get(name)
        if content is None:
            return self.send(request, {}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return self.send(request, content, 200, headers)

    def mode(self, repo, file):
        there = repo.files.get(file["path"])
        large = file["size"] >= LARGE and not file["path"].endswith((".md", ".json"))
        oid = None if there is None else entry(file["path"], there)
        oid = oid and (oid["lfs"]["oid"] if large and "lfs" in oid else oid["oid"])
        mode = "lfs" if large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def commit(self, request, id, lines):
        repo, header = self.repos[id], lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.head):
            return self.send(request, {"error": "A commit has happened since. Please refresh and try again."}, 412)
        files = dict(repo.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return self.send(request, {"error": f"LFS object {value['oid']} is not there"}, 400)
                files[value["path"]] = self.objects[value["oid"]]
            else:
                del files[value["path"]]
        commit = repo.commit(files)
        return self.send(request, {"commitUrl": f"{self.url}/{id}/commit/{commit}", "commitOid": commit})

    def send(self, request, answer, status=200, headers=None):
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)


def entry(name, content):
    """A file as the Hub's tree lists it."""
    found = {"type": "file", "path": name, "size": len(content)}
    if len(content) < LARGE or name.endswith((".md", ".json")):
        return found | {"oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    digest = hashlib.sha256(content).hexdigest()
    lfs = {"oid": digest, "size": len(content), "pointerSize": 130}
    return found | {"oid": hashlib.sha1(digest.encode()).hexdigest(), "lfs": lfs}


def card_problems(text):
    """What the Hub would say against a card's metadata, as far as its documentation tells."""
    if not text.startswith("---\n"):
        yield "empty or missing yaml metadata in repo card"
        return
    said = yaml.safe_load(text.split("---\n")[1])
    if said.get("license") not in LICENCES:
        yield f'"license" must be one of {LICENCES}'
    if said.get("license") == "other" and not {"license_name", "license_link"} <= said.keys():
        yield '"license_name" and "license_link" are required'
    if said.get("base_model_relation", "finetune") not in RELATIONS:
        yield '"base_model_relation" must be one of those'
    if any(not isinstance(each, str) for each in said.get("tags", [])):
        yield '"tags" must be strings'
    for model in said.get("model-index", []):
        for result in model["results"]:
            if not {"type", "name"} <= result["dataset"].keys() or not all("value" in m for m in result["metrics"]):
                yield '"model-index" is not valid'
