"""A stand-in for the Hugging Face Hub: the four addresses that fetching a model uses, over real HTTP."""

import contextlib
import hashlib
import http.server
import json
import threading

COMMIT = "a" * 40


class HubServer:
    """Serves the files of folders as models. `refusals`: model id -> (status, X-Error-Code, only on file addresses)."""

    def __init__(self):
        self.models, self.refusals, self.tokens, self.paths = {}, {}, set(), []
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

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def reply(self, request):
        path = request.path.split("?")[0]
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repo = "/".join(parts[:2])
        status, code, files_only = self.refusals.get(repo, (0, "", False))
        if repo not in self.models and not status:
            status, code = 404, "RepoNotFound"
        if status and not (files_only and api):
            return self.send(request, b"{}", status=status, headers={"X-Error-Code": code})
        if api:
            if len(parts) > 3 and parts[3] not in ("main", COMMIT):
                return self.send(request, b"{}", status=404, headers={"X-Error-Code": "RevisionNotFound"})
            return self.send(
                request, json.dumps(self.tree(repo) if parts[2:3] == ["tree"] else self.info(repo)).encode()
            )
        file = self.models[repo] / "/".join(parts[4:])
        if not file.is_file():
            return self.send(request, b"", status=404, headers={"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.send(request, content, headers={"ETag": etag, "X-Repo-Commit": COMMIT})

    def info(self, repo):
        return {
            "id": repo,
            "modelId": repo,
            "sha": COMMIT,
            "siblings": [{"rfilename": f["path"]} for f in self.tree(repo)],
        }

    def tree(self, repo):
        folder = self.models[repo]
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
