"""A GGUF file on the CPU: llama.cpp's own server inside this process. The one file that knows xllamacpp.

Requests go over HTTP on loopback: measured beside the callback functions of xllamacpp, first token and speed are
equal (0.12 s and 118 tokens/s both ways), and tokens, templates and whole-vocabulary probabilities exist only there.

Letters in names: V vocabulary.
"""

import contextlib
import http.client
import json
import math
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import BaseError, DataError, ProofError, ResourceError
from tunesmith.gguf.metadata import refuse_big_endian
from tunesmith.machine import need_utf8
from tunesmith.recipe import ChatConfig

try:
    import xllamacpp
except ImportError as error:
    if "libgomp" not in str(error):
        raise
    raise ResourceError("llama.cpp needs the system library libgomp", fix="apt-get install libgomp1") from error

OLDEST = (2026, 10, 11549)  # the build whose answers, errors and defaults this file was written against
GGUF_VERSIONS = (2, 3)  # what llama.cpp reads
PROMPT_CACHE_MIB = 256  # for conversations that lost their slot; llama.cpp's own 8192 is more than the machine has
SUM_TOLERANCE = 1e-3  # llama.cpp sums the softmax in 32 bits: 1.3e-4 off at 49,152 tokens

Message = Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """One answer of the model, and how fast it came."""

    text: str
    stopped: bool
    """The model ended it by its stop token; False: max_tokens or the context ended it."""
    prompt_tokens: int
    tokens: int
    first_token_s: float
    prompt_per_s: float
    """Prompt tokens read per second; those found in the prompt cache are not counted."""
    tokens_per_s: float


class Engine:
    """llama.cpp's server for one GGUF file, on 127.0.0.1 only; a context manager."""

    def __init__(
        self, gguf: Path, *, threads: int, context: int, slots: int = 1,
        port: int | None = None, alias: str | None = None, chat: ChatConfig | None = None,
    ) -> None:  # fmt: skip
        """Load `gguf`; `slots` conversations of `context` tokens each; `chat`: sampling where a request names none.

        Raises BaseError for a file that is no GGUF or cannot be loaded, ResourceError for a port in use.
        """
        _check_version(xllamacpp.__version__)
        need_utf8(gguf)
        _check_gguf(gguf)
        if port is not None:
            _check_port(port)
        self._name = gguf.name
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.model_alias = {alias or gguf.stem}
        params.port = port or 0  # 0: any free one
        params.verbosity = 0
        params.n_ctx = context * slots  # llama.cpp divides it among the slots
        params.n_parallel = slots
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_gpu_layers = 0
        params.fit_params = False  # it would shrink the context without a word
        params.cache_ram_mib = PROMPT_CACHE_MIB
        params.default_template_kwargs = {"tools": "null"}  # the page offers tools, which would enter every prompt
        params.sampling.top_k, params.sampling.min_p = 0, 0.0  # nothing that the recipe does not say
        if chat:
            params.sampling.temp, params.sampling.top_p = chat.temperature, chat.top_p
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            if port is not None:
                _check_port(port)  # taken since the first look
            raise BaseError(
                f"llama.cpp cannot load {gguf.name}; the file is cut, damaged, or of a kind it does not know",
                fix="make it again with `tunesmith export`, or check that it fits in memory", where=str(gguf),
            ) from error  # fmt: skip
        self.url: str = self._server.listening_address
        self._ask("/slots")  # answered by its loop: closed before that has begun, it would wait for itself for ever
        self.vocabulary: int = self._ask("/v1/models")["data"][0]["meta"]["n_vocab"]
        self._drawn = self.tokenize("a", special=False)[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and free the model; running answers are cut."""
        self._server = None

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids. `special`: read special tokens in the text, and add those at the start that the file asks for."""
        return self._ask("/tokenize", {"content": text, "add_special": special, "parse_special": special})["tokens"]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self._ask("/detokenize", {"tokens": list(ids)})["content"]

    def render(self, messages: Sequence[Message]) -> str:
        """Messages in the file's chat template as llama.cpp applies it, with the start of the next answer."""
        return self._ask("/apply-template", {"messages": [dict(message) for message in messages]})["prompt"]

    def next_token_logprobs(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Natural logarithm of the probability of every token after `ids`; shape [vocabulary].

        Raises ProofError if the file computes no numbers, or some sampling transform had changed the probabilities.
        """
        # The bias decides which token is drawn, not the probabilities, which llama.cpp takes before: without it
        # a token of half a UTF-8 character may be drawn, and then llama.cpp leaves the probabilities out.
        body = {
            "prompt": list(ids), "n_predict": 1, "n_probs": self.vocabulary, "samplers": [], "temperature": 1.0,
            "post_sampling_probs": False, "cache_prompt": False, "logit_bias": [[self._drawn, 1e5]],
        }  # fmt: skip
        found = self._ask("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        if empty := sum(entry["logprob"] is None for entry in found):  # how JSON writes a NaN
            what = f"{self._name} computes no numbers: {empty} of {self.vocabulary} probabilities are NaN"
            raise ProofError(what, fix="delete model/ and gguf/ and run again")
        logprobs_V = np.full(self.vocabulary, np.nan)
        logprobs_V[[entry["id"] for entry in found]] = [entry["logprob"] for entry in found]
        total = float(np.exp(logprobs_V).sum())
        if len(found) != self.vocabulary or not math.isclose(total, 1, abs_tol=SUM_TOLERANCE):
            raise ProofError(
                f"sampling transforms are not off: {len(found)} of {self.vocabulary} tokens, they sum to {total:.5f}",
                fix="use the version of xllamacpp in constraints.txt",
            )
        return (logprobs_V - math.log(total)).astype(np.float32)

    def chat(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0, top_p: float = 1.0,
        cache: bool = True, ignore_end: bool = False, on_text: Callable[[str], None] | None = None,
    ) -> Answer:  # fmt: skip
        """Answer a conversation, greedily at temperature 0. `on_text` gets each piece of text as it comes.

        `cache`: read only what differs from the conversation before. `ignore_end`: never stop before max_tokens. Raises
        ResourceError for one that is too long.
        """
        body = {
            "messages": [dict(message) for message in messages], "max_tokens": max_tokens, "temperature": temperature,
            "top_p": top_p, "cache_prompt": cache, "stream": True, "reasoning_format": "none", "ignore_eos": ignore_end,
        }  # fmt: skip
        started = time.perf_counter()
        first_token_s, pieces, reason, timings = 0.0, list[str](), "", dict[str, Any]()
        for line in self._send("/v1/chat/completions", body):
            if not line.startswith(b"data: {"):
                continue
            chunk = _checked(json.loads(line.removeprefix(b"data: ")))
            choice = chunk["choices"][0]
            if text := choice["delta"].get("content"):
                first_token_s = first_token_s or time.perf_counter() - started
                pieces.append(text)
                if on_text:
                    on_text(text)
            reason, timings = choice["finish_reason"] or reason, chunk.get("timings", timings)
        return Answer(
            text="".join(pieces), stopped=reason == "stop", tokens=timings["predicted_n"],
            first_token_s=first_token_s or time.perf_counter() - started,
            prompt_tokens=timings["cache_n"] + timings["prompt_n"],
            prompt_per_s=timings["prompt_per_second"], tokens_per_s=timings["predicted_per_second"],
        )  # fmt: skip

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return json.loads(b"".join(self._send(path, body)))

    def _send(self, path: str, body: Mapping[str, Any] | None) -> Iterator[bytes]:
        """Lines of the response. Leaving the loop early closes the connection, and that stops the answer."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"))
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST" if body else "GET", path, _encoded(body) if body else None, headers)
            with connection.getresponse() as response:  # it holds the socket open as well
                if response.status != 200:
                    _checked(json.loads(response.read()))
                yield from response


def _encoded(body: Mapping[str, Any]) -> bytes:
    """JSON. Raises DataError for a text that is none, which llama.cpp would call a mistake in the JSON."""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = ord(error.object[error.start])
        byte = f" (the byte {found - 0xDC00:02X} in another encoding)" if 0xDC80 <= found <= 0xDCFF else ""  # PEP 383
        what = f"the text has half a character, U+{found:04X}{byte}"
        raise DataError(what, fix="write it in UTF-8; a terminal must be set to UTF-8 as well") from error


def _checked(answer: Any) -> Any:
    """llama.cpp tells of errors in its answers: raise them as ours."""
    error = answer.get("error")
    if error is None:
        return answer
    if error.get("type") == "exceed_context_size_error":
        what = f"the conversation has {error['n_prompt_tokens']} tokens, the context holds {error['n_ctx']}"
        raise ResourceError(what, fix="start a new conversation, or raise chat.context in the recipe")
    fix = "check the model's chat template, and that each message has a role and a text"
    if error.get("type") == "server_error":
        fix = "make the GGUF file again with `tunesmith export`; if that does not help, report it to xllamacpp"
    raise BaseError(f"llama.cpp refused: {error.get('message', error)}", fix=fix)


def _check_version(version: str) -> None:
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ResourceError(f"xllamacpp is {version}, {oldest} is needed", fix=f"pip install 'xllamacpp>={oldest}'")


def _check_gguf(path: Path) -> None:
    """Raise BaseError unless the file begins as a GGUF (specification: ggml's docs/gguf.md, "File structure")."""
    try:
        with path.open("rb") as file:
            magic, version = struct.unpack("<4sI", file.read(8))
        problem = "is no GGUF file" if magic != b"GGUF" else f"is GGUF version {version}, which llama.cpp does not read"
    except struct.error:
        magic, version, problem = b"", 0, "is no GGUF file"
    except OSError as error:
        magic, version, problem = b"", 0, f"cannot be read: {error.strerror}"
    if magic == b"GGUF":
        refuse_big_endian(path, version)
    if magic != b"GGUF" or version not in GGUF_VERSIONS:
        raise BaseError(
            f"{path.name} {problem}", fix="name a .gguf file; `tunesmith export` makes them", where=str(path)
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed server's port is free at once
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            fix = f"choose another one, such as --port {port % 65000 + 1}"
            raise ResourceError(f"port {port} cannot be used: {error}", fix=fix) from error
