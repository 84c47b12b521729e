"""A stand-in for the Hugging Face Hub: the addresses that fetching a model or a data set uses, over real HTTP."""

import contextlib
import hashlib
import http.server
import json
import threading

COMMIT = "a" * 40


class Served:
    """A server of this machine that answers while it is `running`."""

    def listen(self, handler):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


class HubServer(Served):
    """Serves the files of folders as models, and as data sets, which have commits: {"main": commit, commit: folder}.

    `refusals`: id -> (status, X-Error-Code, only on file addresses).
    """

    def __init__(self):
        self.models, self.datasets, self.refusals, self.tokens, self.paths = {}, {}, {}, set(), []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def log_message(self, *_):
                pass

            def answer(self):
                hub.paths.append(self.path)
                hub.tokens.add(self.headers.get("Authorization"))
                hub.reply(self)

        self.listen(Handler)

    def reply(self, request):
        path = request.path.split("?")[0].strip("/")
        api, path = path.startswith("api/"), path.removeprefix("api/").removeprefix("models/")
        is_dataset, parts = path.startswith("datasets/"), path.removeprefix("datasets/").split("/")
        repo, known = "/".join(parts[:2]), self.datasets if is_dataset else self.models
        status, code, files_only = self.refusals.get(repo, (0, "", False))
        if repo not in known and not status:
            status, code = 404, "RepoNotFound"
        if status and not (files_only and api):
            return self.send(request, b"{}", status=status, headers={"X-Error-Code": code})
        commit, folder = self.revision(known[repo], parts[3] if len(parts) > 3 else "main")
        if folder is None:
            return self.send(request, b"{}", status=404, headers={"X-Error-Code": "RevisionNotFound"})
        if api:
            answer = self.tree(folder) if parts[2:3] == ["tree"] else self.info(repo, commit, folder)
            return self.send(request, json.dumps(answer if len(parts) < 5 else []).encode())
        file = folder / "/".join(parts[4:])
        headers = {"X-Repo-Commit": commit}
        if not file.is_file():
            return self.send(request, b"", status=404, headers=headers | {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.send(request, content, headers=headers | {"ETag": etag})

    def revision(self, known, revision):
        """Commit and folder of a repository at a revision; no folder if it has none such."""
        commits = known if isinstance(known, dict) else {"main": COMMIT, COMMIT: known}
        commit = commits.get(revision, "") if revision == "main" else revision
        return commit, commits.get(commit)

    def info(self, repo, commit, folder):
        siblings = [{"rfilename": f["path"], "size": f["size"]} for f in self.tree(folder)]
        return {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}

    def tree(self, folder):
        return [
            {
                "type": "file",
                "path": str(file.relative_to(folder)),
                "size": file.stat().st_size,
                "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
            }
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]

    def send(self, request, body, *, status=200, headers=None):
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)
