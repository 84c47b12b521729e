"""Requests to llama.cpp's server, in this process or another: answers, tokens, templates, probabilities.

They go over HTTP on loopback: measured beside the callback functions of xllamacpp, first token and speed are equal
(0.12 s and 118 tokens/s both ways), and tokens, templates and whole-vocabulary probabilities exist only there.

Letters in names: V vocabulary.
"""

import contextlib
import gzip
import http.client
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import BaseError, DataError, ProofError, ResourceError, TunesmithError
from tunesmith.inference.ended import MAKE_AGAIN

SUM_TOLERANCE = 1e-3  # llama.cpp sums the softmax in 32 bits: 1.3e-4 off at 49,152 tokens

GREEDY = {"temperature": 0.0, "samplers": ["temperature"], "cache_prompt": False}
"""Nothing of the sampling changes which token is the most likely."""

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


class Client:
    """What llama.cpp's server answers at a URL."""

    def __init__(self, url: str, name: str, key: str = "") -> None:
        """`name`: of the model, for the user; `key`: without which the server answers nobody."""
        self.url, self.key, self._name = url, key, name
        self._ask("/lora-adapters")  # answered by its loop: a server closed before that has begun waits for ever
        self.vocabulary: int = self._ask("/v1/models")["data"][0]["meta"]["n_vocab"]
        self._drawn = self.tokenize("a", special=False)[-1]

    @property
    def headers(self) -> dict[str, str]:
        """What lets a request in."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def fetch(self, path: str) -> bytes:
        """A file of llama.cpp's page, which it has packed only."""
        return gzip.decompress(b"".join(self._send(path, None, {"Accept-Encoding": "gzip"})))

    def sampling(self) -> dict[str, Any]:
        """What it samples with where a request says nothing, in llama.cpp's names."""
        found: dict[str, Any] = self._ask("/props")["default_generation_settings"]["params"]
        return found

    def own_system(self) -> str | None:
        """The system prompt that the file's template puts in where a conversation has none; None where it puts none."""
        question, mark = [{"role": "user", "content": "?"}], "\N{PILCROW SIGN} 7 \N{PILCROW SIGN}"
        try:
            bare, marked = self.render(question), self.render([{"role": "system", "content": mark}, *question])
        except TunesmithError:  # a template that takes no system prompt
            return None
        before, found, after = marked.partition(mark)
        if not found or not bare.startswith(before) or not bare.endswith(after) or len(bare) < len(before + after):
            return None
        own = bare[len(before) : len(bare) - len(after)]
        same = own.strip() and self.render([{"role": "system", "content": own}, *question]) == bare
        return own if same else None

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

    def go_on(self, ids: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that follow `ids`, the most likely one each time; with the one that ended the text."""
        body = GREEDY | {"prompt": list(ids), "n_predict": count, "return_tokens": True}
        found: list[int] = self._ask("/completion", body)["tokens"]
        return found

    def stops_at(self, ids: Sequence[int], token: int) -> bool:
        """Whether an answer ends by itself where `token` follows `ids`."""
        body = GREEDY | {"prompt": list(ids), "n_predict": 2, "logit_bias": [[token, 1e5]]}
        return bool(self._ask("/completion", body)["stop_type"] == "eos")

    def chat(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float | None = 0.0,
        cache: bool = True, ignore_end: bool = False, on_text: Callable[[str], None] | None = None,
    ) -> Answer:  # fmt: skip
        """Answer a conversation, greedily at temperature 0; None samples as the server was told to.

        `on_text` gets each piece of text as it comes.
        `cache`: read only what differs from the conversation before. `ignore_end`: never stop before max_tokens. Raises
        ResourceError for one that is too long, ConnectionError where the server ends in the middle.
        """
        body = {
            "messages": [dict(message) for message in messages], "max_tokens": max_tokens, "cache_prompt": cache,
            "stream": True, "reasoning_format": "none", "ignore_eos": ignore_end,
        } | ({} if temperature is None else {"temperature": temperature, "top_p": 1.0})  # fmt: skip
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
        if not timings:
            raise ConnectionError(f"{self._name} stopped in the middle of an answer")
        return Answer(
            text="".join(pieces), stopped=reason == "stop", tokens=timings["predicted_n"],
            first_token_s=first_token_s or time.perf_counter() - started,
            prompt_tokens=timings["cache_n"] + timings["prompt_n"],
            prompt_per_s=timings["prompt_per_second"], tokens_per_s=timings["predicted_per_second"],
        )  # fmt: skip

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return json.loads(b"".join(self._send(path, body)))

    def _send(
        self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        """Lines of the response. Leaving the loop early closes the connection, and that stops the answer."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"))
        with contextlib.closing(connection):
            sent = {"Content-Type": "application/json", **self.headers, **(headers or {})}
            connection.request("POST" if body else "GET", path, _encoded(body) if body else None, sent)
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
        fix = MAKE_AGAIN
    raise BaseError(f"llama.cpp refused: {error.get('message', error)}", fix=fix)
