"""What tunesmith's chat costs over the bare engine: first token and tokens per second, requests taken in turns.

    python benchmarks/chat_overhead.py MODEL.gguf [rounds]

Bare: xllamacpp's server object, called by its function for chats. Chat: `tunesmith chat` as a process, over HTTP.
Both with 2 threads and the same context. Medians over the rounds; targets: first token <= 1.5 s, overhead <= 5 %.
"""

import http.client
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import xllamacpp

THREADS, CONTEXT, SLOTS, TOKENS = 2, 4096, 2, 128
QUESTION = "Explain in a few paragraphs how a rainbow forms, and why its colours always come in the same order."
BODY = {
    "messages": [{"role": "user", "content": QUESTION}], "max_tokens": TOKENS, "temperature": 0, "stream": True,
    "cache_prompt": False, "ignore_eos": True,
}  # fmt: skip

Way = Callable[[Callable[[Any], None]], None]
"""Asks, and hands on each chunk of the answer as it comes."""


def main() -> None:
    """Measure both and print one row each."""
    gguf, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 15
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from tunesmith.cli import main; main()", "chat", gguf, "--port", str(port)]
    with subprocess.Popen([*command, "--threads", str(THREADS)], stderr=subprocess.PIPE, text=True) as chat:
        assert chat.stderr and "answers at" in chat.stderr.readline()
        ways: dict[str, Way] = {"bare": bare(gguf), "chat": lambda take: over_http(port, take)}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for round_number in range(rounds + 1):
            for name, way in ways.items():
                seen = timed(way)
                if round_number:  # the first is warm-up
                    found[name].append(seen)
        chat.terminate()
    medians = {name: [statistics.median(values) for values in zip(*seen, strict=True)] for name, seen in found.items()}
    print("| way | first token, s | tokens/s |\n|---|---|---|")
    for name, (first_s, per_s) in medians.items():
        print(f"| {name} | {first_s:.3f} | {per_s:.1f} |")
    (bare_first_s, bare_per_s), (first_s, per_s) = medians["bare"], medians["chat"]
    slower = [first_s / bare_first_s - 1, bare_per_s / per_s - 1]
    print(f"overhead: first token {slower[0]:+.1%}, speed {slower[1]:+.1%} ({rounds} rounds)")


def timed(way: Way) -> tuple[float, float]:
    """Seconds to the first text, and tokens per second after it."""
    stamps: list[float] = []

    def take(chunk: Any) -> None:
        if chunk["choices"][0]["delta"].get("content"):
            stamps.append(time.perf_counter())

    started = time.perf_counter()
    way(take)
    return stamps[0] - started, (len(stamps) - 1) / (stamps[-1] - stamps[0])


def bare(gguf: str) -> Way:
    """The engine without us: its own server object, loaded with the same threads, context and slots."""
    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity = gguf, 0
    params.n_ctx, params.n_parallel = CONTEXT * SLOTS, SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    server = xllamacpp.Server(params)

    def ask(take: Callable[[Any], None]) -> None:
        def each(chunks: Any) -> None:
            for chunk in chunks if isinstance(chunks, list) else [chunks]:
                take(chunk)

        server.handle_chat_completions(BODY, each)

    return ask


def over_http(port: int, take: Callable[[Any], None]) -> None:
    """Our chat as a browser or an OpenAI client speaks to it."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/chat/completions", json.dumps(BODY), {"Content-Type": "application/json"})
    for line in connection.getresponse():
        if line.startswith(b"data: {"):
            take(json.loads(line.removeprefix(b"data: ")))
    connection.close()


if __name__ == "__main__":
    main()
