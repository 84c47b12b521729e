"""Run folders with rows, a recipe and checkpoints of a few bytes, and places for their mirrors."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import urllib.request
from pathlib import Path
from typing import ClassVar

import fsspec

from tunesmith.files import DIGESTS, commit_folder, digest_folder
from tunesmith.recipe import Recipe
from tunesmith.runs import Run, commit_stage
from tunesmith.training.mirror import Mirror
from tunesmith.training.saved import ADAPTER, OPTIMIZER, STATE

NAME = "small"


def made_run(path, name=NAME):
    """A run whose rows stand and whose training has begun."""
    run = Run(path)

    def work(draft):
        (draft / "rows.parquet").write_bytes(hashlib.sha256(b"rows").digest() * 50)
        (draft / "tokens.npy").write_bytes(b"tokens")
        return {"train_rows": 1}

    commit_stage(run.data, {"rows": 1}, {}, work)
    run.keep_recipe(Recipe(name=name, base="base", data={"sources": [{"path": "rows"}]}))
    return run


def saved(run, step, best=0):
    """A checkpoint of this step, and the lines of the steps before it. Its bytes are a function of the step."""
    run.metrics.write_text("".join(json.dumps({"step": number, "loss": 1.0}) + "\n" for number in range(1, step + 1)))
    run.samples.write_text(json.dumps({"step": step}) + "\n")

    def write(draft):
        (draft / ADAPTER).write_bytes(hashlib.sha256(b"%d" % step).digest() * 30)
        (draft / OPTIMIZER).write_bytes(hashlib.sha256(b"o%d" % step).digest() * 90)
        (draft / STATE).write_text(json.dumps({"progress": {"step": step, "best_step": best or step}}))
        (draft / DIGESTS).write_text(json.dumps(digest_folder(draft), indent=1) + "\n")

    folder = run.checkpoints / f"step-{step:06d}"
    commit_folder(folder, write)
    return folder


def offered(mirror, run, step, best=0, keep=()):
    """Save a checkpoint and offer it; keeps all by default."""
    folder = saved(run, step, best)
    keep = keep or [path.name for path in run.checkpoints.iterdir()]
    mirror.offer(folder, run.metrics.read_bytes(), run.samples.read_bytes(), keep)
    return folder


def mirrored(url, path, *steps, best=0):
    """A run that has gone to these steps, each in the mirror at `url`."""
    run = made_run(path)
    mirror = Mirror(url, run, NAME)
    mirror.claim()
    mirror.start()
    for step in steps:
        offered(mirror, run, step, best)
        wait_for(lambda name=f"step-{step:06d}": mirror._done == name)
    assert mirror.close(20)
    return run


def wait_for(it, limit_s=20.0):
    """Until `it()`."""
    deadline, pause = time.monotonic() + limit_s, threading.Event()  # some tests let time.sleep take no time
    while not it():
        assert time.monotonic() < deadline, "it did not come"
        pause.wait(0.005)


def trainer(folder, url, seconds):
    """A process that saves a step every 20 ms, and looks at its mirror as training does."""
    run = Run(Path(folder))
    mirror = Mirror(url, run, NAME)
    mirror.fetch()
    run = made_run(run.path) if not run.recipe.exists() else run
    mirror.claim()
    mirror.start()
    step = max([0, *(int(path.name[5:]) for path in run.checkpoints.glob("step-*"))])
    end = time.monotonic() + float(seconds)
    while not mirror.taken_over and time.monotonic() < end:
        step += 1
        offered(mirror, run, step, keep=[f"step-{step:06d}"])
        print(step, flush=True)
        time.sleep(0.02)
    mirror.close(10)
    print(f"taken over: {mirror.taken_over}", flush=True)


def contents(folder):
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def s3_server(monkeypatch):
    """A bucket `bucket` of an S3 server in this process, which s3:// means in the block."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "verysecretverysecret"}
    for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1", **keys}.items():
        monkeypatch.setenv(name, value)
    try:
        urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()  # what earlier ones had
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield server
    finally:
        server.stop()


class Failing(fsspec.get_filesystem_class("memory")):
    """Memory whose writes fail as `fails(path)` says; a class of its own, so with files of its own."""

    protocol = "failing"
    store, pseudo_dirs = {}, [""]
    fails = staticmethod(lambda path: False)
    cachable = False
    log: ClassVar = []

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("failing://").strip("/")

    def pipe_file(self, path, value, mode="overwrite", **options):
        self._may(path)
        super().pipe_file(path, value, mode=mode, **options)

    def put_file(self, lpath, rpath, **options):
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def rm_file(self, path):
        self._may(path)
        super().rm_file(path)

    def _may(self, path):
        if self.fails(path):
            raise OSError(5, "Input/output error")
        self.log.append(path)


def emptied(path):
    """A folder without what was in it."""
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path
