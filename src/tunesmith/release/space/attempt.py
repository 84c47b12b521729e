"""`space --try`: a Space's own steps done here, without Docker, and its chat asked as a visitor would ask it.

What the Dockerfile does as root is done by Docker alone, and said; all else is read from the Dockerfile and done as it
stands there, in a folder for a moment: its home is moved there, and what it starts is its CMD.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.boundary import sigterm_as_ctrl_c, why_unread
from tunesmith.console import progress, say
from tunesmith.errors import DataError, ResourceError, TunesmithError
from tunesmith.files import bytes_of, remove
from tunesmith.machine import need_disk, peak_memory_of, processor
from tunesmith.release.space import dockerfile
from tunesmith.release.space.dockerfile import ADVICE, Step
from tunesmith.release.space.limits import CORES, Limits, as_user, guarded, is_running, limits, python_for
from tunesmith.release.space.texts import HOME, UID, summed_up

KEPT = re.compile(r"(?i)PIP_\w+|(?:https?|no|all)_proxy|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|HF_ENDPOINT")
"""Settings of this machine that its network may need."""
OFFLINE = ("NewConnectionError", "Temporary failure in name resolution", "Network is unreachable", "ConnectTimeout")
PLACE = "tunesmith-try-"
PACKAGES_BYTES = 500 * 10**6
START_S, STEP_S, ANSWER_S = 300.0, 1800.0, 600.0
"""The longest that a chat may take to begin, a step of the Dockerfile, and an answer."""
TRY_AGAIN_S = 2.0
MOST_WAITS = 60


@dataclass
class Image:
    """What Docker would have made so far."""

    place: Path
    """The folder that stands for the home of the Dockerfile's user."""
    limits: Limits
    environment: dict[str, str]
    folder: str = "/"
    user: str = "root"

    def here(self, text: str) -> str:
        """A text with the home moved, and what ENV has set filled in."""
        return dockerfile.filled(text, self.environment).replace(HOME, str(self.place))


def try_space(folder: Path, prompts: Sequence[str], max_tokens: int) -> dict[str, Any]:
    """Do the steps of the Space in `folder`, ask its chat the prompts, and return its speeds, medians and quartiles.

    Raises ResourceError for a port in use, a step that fails or a chat that does not begin; DataError for a
    Dockerfile with a step that only Docker knows.
    """
    found = dockerfile.steps((folder / "Dockerfile").read_text(encoding="utf-8"))
    port = dockerfile.port_of(dockerfile.command(found))
    refuse_port_in_use(port)
    with sigterm_as_ctrl_c(), _place(folder) as place, limits(UID) as limited:
        image = Image(place, limited, _environment(place, _python(found)))
        say(f"space: the Dockerfile's steps are done in {place} as {limited.says}")
        for step in found:
            _do(step, image, folder)
        with _started(dockerfile.command(found), image) as process:
            started = time.monotonic()
            _wait(process, port, image)
            _check_health(found, image)
            say(f"space: the chat answered on port {port} after {time.monotonic() - started:.1f} s")
            answers = _answers(port, prompts, max_tokens)
            peak_bytes = peak_memory_of(process.pid)
    if not any("tokens_per_s" in answer for answer in answers):
        raise ResourceError(
            "the chat's answers have less than two tokens each", fix="look at the model in `tunesmith chat`"
        )
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    measured = {"measured_at": now, "processor": processor(), "threads": CORES, "peak_memory_bytes": peak_bytes}
    return summed_up(answers) | measured


def refuse_port_in_use(port: int) -> None:
    """Raise ResourceError where something listens already: the Space's own port is what its CMD names."""
    with contextlib.closing(socket.socket()) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just been closed is free
        try:
            free.bind(("0.0.0.0", port))
        except OSError as error:
            what = f"port {port}, which the Space's CMD names, cannot be used: {why_unread(error)}"
            raise ResourceError(what, fix="end what uses it, such as another chat, and type the same again") from error


@contextlib.contextmanager
def _place(folder: Path) -> Iterator[Path]:
    """A folder of the other user's, deleted afterwards."""
    temporary = Path(tempfile.gettempdir())
    need_disk(temporary, bytes_of(folder) + PACKAGES_BYTES, "to try the Space", fix="free some space, or set TMPDIR")
    for left in temporary.glob(f"{PLACE}*"):
        number = left.name.removeprefix(PLACE).partition("-")[0]
        if number.isdigit() and not is_running(number):  # of a command that was killed
            shutil.rmtree(left, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=f"{PLACE}{os.getpid()}-"))
    try:
        if as_user(UID):
            os.chown(place, UID, UID)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _python(found: Sequence[Step]) -> str:
    """The Python here that is of the image's version."""
    images = [match for step in found if step.word == "FROM" and (match := re.match(r"python:(3\.\d+)", step.text))]
    if not images:
        raise DataError("the Dockerfile begins with no image of Python, as python:3.11-slim", fix=ADVICE)
    base = str(getattr(sys, "_base_executable", sys.executable))
    return python_for(images[0][1], UID, [base, f"/usr/bin/python{images[0][1]}", f"python{images[0][1]}", "python3"])


def _environment(place: Path, python: str) -> dict[str, str]:
    """That of the image: its `python` is the one that was found here."""
    programs = place / ".image"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    (programs / "python").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    return kept | {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "TMPDIR": str(place)}


def _do(step: Step, image: Image, folder: Path) -> None:
    """One step, as the user that the Dockerfile has named by then."""
    match step.word:
        case "ENV":
            image.environment |= {name: image.here(value) for name, value in dockerfile.settings(step).items()}
        case "USER":
            image.user = step.text
        case "WORKDIR":
            image.folder = image.here(step.text)
            _make_folders(Path(image.folder), image.place)
        case "COPY":
            _copy(step, image, folder)
        case "RUN" if image.user == "root":
            say(f"space: not done here, where no image is made: {step}")
        case "RUN":
            _run(step, image)
        case "FROM" | "EXPOSE" | "HEALTHCHECK" | "CMD":
            pass  # read before and after
        case _:
            raise DataError(f"Dockerfile, {step}: only Docker can do this step", fix=ADVICE)


def _make_folders(folder: Path, place: Path) -> None:
    if not folder.is_relative_to(place):
        raise DataError(f"the Dockerfile works in {folder}, outside of {HOME}", fix=ADVICE)
    for each in (*reversed(folder.parents), folder):
        if each.is_relative_to(place) and not each.exists():
            each.mkdir()
            _give(each)


def _give(path: Path) -> None:
    if as_user(UID):
        os.chown(path, UID, UID)


def _copy(step: Step, image: Image, folder: Path) -> None:
    """Files of the Space only, into a folder of the image."""
    *names, to = step.words()
    target = Path(image.folder, image.here(to))
    _make_folders(target, image.place)
    for name in names:
        source = folder / name
        if not source.is_file() or source.resolve().parent != folder.resolve():
            raise DataError(f"Dockerfile, {step}: there is no file {name} in {folder}", fix=ADVICE)
        shutil.copyfile(source, target / source.name)
        _give(target / source.name)


def _run(step: Step, image: Image) -> None:
    text = image.here(step.text)
    environment = dict(image.environment)
    if any(name == "mount" and "id=HF_TOKEN" in value for name, value in step.flags) and "HF_TOKEN" in os.environ:
        environment["HF_TOKEN"] = os.environ["HF_TOKEN"]
    say(f"space: {step}")
    log = image.place / ".step.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            guarded(["sh", "-c", text]), cwd=image.folder, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True, **image.limits.start,
        )  # fmt: skip
        with _ended(process):
            try:
                code = process.wait(STEP_S)
            except subprocess.TimeoutExpired as error:
                what = f"Dockerfile, {step}: it took more than {STEP_S / 60:.0f} minutes"
                raise ResourceError(what, fix="see to the network, and type the same again") from error
    if code:
        raise _failed(f"Dockerfile, {step}: it ended with {code}", log)
    remove(log)


def _failed(what: str, log: Path) -> TunesmithError:
    """The error of a program that ended, with the last that it said."""
    said = log.read_text(errors="replace")
    last = [line.strip() for line in said.splitlines() if line.strip()][-3:]
    fix = "look at what it says, and type the same again"
    if any(sign in said for sign in OFFLINE):
        fix = "connect to the network: what the Space installs is downloaded to try it; and type the same again"
    return ResourceError(f"{what}: {' / '.join(last)[-600:] or 'it said nothing'}", fix=fix)


@contextlib.contextmanager
def _started(words: Sequence[str], image: Image) -> Iterator[subprocess.Popen[bytes]]:
    """The CMD at work; ended with all that it has started."""
    environment = image.environment | {"PYTHONDONTWRITEBYTECODE": "1"}
    program = shutil.which(words[0], path=environment["PATH"])
    if program is None:
        raise DataError(f"the CMD of the Dockerfile starts {words[0]}, which its steps do not install", fix=ADVICE)
    say(f"space: CMD {' '.join(words)}")
    with (image.place / ".chat.log").open("wb") as output:
        process = subprocess.Popen(
            guarded([program, *(image.here(word) for word in words[1:])]), cwd=image.folder, env=environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            **image.limits.start,
        )  # fmt: skip
        with _ended(process):
            yield process


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A process that does not outlive the block, with all that it has started: as `docker stop` ends it."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, image: Image) -> None:
    """Until /health says that the chat is ready."""
    deadline = time.monotonic() + START_S
    while True:
        if (code := process.poll()) is not None:
            raise _failed(f"the Space's chat ended with {code} before it answered", image.place / ".chat.log")
        if _is_healthy(port):
            return
        if time.monotonic() > deadline:
            raise _failed(f"the Space's chat did not answer within {START_S:.0f} s", image.place / ".chat.log")
        time.sleep(0.1)


def _is_healthy(port: int) -> bool:
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def _check_health(found: Sequence[Step], image: Image) -> None:
    """What Docker would ask now and then."""
    for step in found:
        if step.word == "HEALTHCHECK" and (match := re.search(r"CMD\s+(\[.*)", step.text)):
            words = [image.here(word) for word in json.loads(match[1])]
            done = subprocess.run(
                words, cwd=image.folder, env=image.environment, capture_output=True, text=True, timeout=60, check=False,
                **image.limits.start,
            )  # fmt: skip
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise ResourceError(f"Dockerfile, {step}: it ended with {done.returncode}: {last}", fix=ADVICE)


def _answers(port: int, prompts: Sequence[str], max_tokens: int) -> list[dict[str, float]]:
    with progress("answers of the Space", len(prompts), unit="questions") as advance:
        found = []
        for prompt in prompts:
            found.append(ask(port, prompt, max_tokens))
            advance(1, "")
        return found


def ask(port: int, prompt: str, max_tokens: int) -> dict[str, float]:
    """One answer, streamed: seconds to its first token, its tokens, and tokens per second after the first.

    A refusal that asks for patience (429) is waited for. Raises ResourceError for another one.
    """
    body = {
        "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0.0,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    for _ in range(MOST_WAITS):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)) as connection:
            begun = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status == 200:
                return _timed(answer, begun)
            said = answer.read(2000).decode(errors="replace")
            if answer.status != 429:
                raise ResourceError(
                    f"the Space's chat answered {answer.status}: {said}", fix="try it in `tunesmith chat`"
                )
            wait = answer.headers.get("Retry-After", "")
        time.sleep(min(float(wait), ANSWER_S) if wait.isdigit() else TRY_AGAIN_S)
    raise ResourceError("the Space's chat is busy and takes no question", fix="end what else asks it")


def _timed(answer: http.client.HTTPResponse, begun: float) -> dict[str, float]:
    times: list[float] = []
    tokens, per_s = 0, 0.0
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line.removeprefix(b"data: "))
        if (choices := chunk.get("choices")) and choices[0]["delta"].get("content"):
            times.append(time.perf_counter() - begun)
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        per_s = (chunk.get("timings") or {}).get("predicted_per_second", per_s)
    if not times:
        return {"first_token_s": time.perf_counter() - begun, "tokens": tokens}
    tokens = tokens or len(times)
    found = {"first_token_s": times[0], "tokens": tokens}
    after = times[-1] - times[0]  # of an engine that does not say; tokens that came together would count as none
    per_s = per_s or (tokens - 1) / after if after > 0 else per_s
    return found | ({"tokens_per_s": per_s} if tokens > 1 and per_s else {})


def tried_in_words(tried: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    return (
        f"first token {tried['first_token_s']:.2f} s, {tried['tokens_per_s']:.1f} tokens/s (medians of "
        f"{tried['prompts']} prompts) on {tried['processor']}"
    )
