"""The chat under load: 64 clients for a minute on two threads, then its speed beside llama.cpp's own server.

    python benchmarks/serve.py MODEL.gguf [seconds] [pairs]

Each request has a number of its own, and a grammar (GBNF) that lets nothing be said but a letter or two and that
number: an answer with another number is one that was mixed up. A refusal must be a 429. The speed is measured in pairs:
one stream through the chat, the next straight from the engine behind it, same process, file and settings. Time to the
first token of turn 8 of a conversation beside turn 1 shows that its beginning is kept.
"""

import contextlib
import http.client
import json
import os
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tunesmith.recipe import ChatConfig
from tunesmith.server.door import Door, Limits
from tunesmith.server.front import Front
from tunesmith.server.keeper import Keeper
from tunesmith.server.page import Page, described

CLIENTS, WAITING, THREADS, SLOTS, CONTEXT, TOKENS = 64, 32, 2, 2, 4096, 128
QUESTION = "Explain in a few paragraphs how a rainbow forms, and why its colours always come in the same order."
TURNS = 8


def main() -> None:
    """All three, and an exit code that says whether all is well."""
    gguf, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    pairs = int(sys.argv[3]) if len(sys.argv) > 3 else 12
    chat = ChatConfig(context=CONTEXT, slots=SLOTS, temperature=0.0)
    job = {"gguf": str(gguf), "alias": gguf.stem, "chat": chat.model_dump(), "threads": THREADS, "own_sampling": False}
    keeper = Keeper(job, print, lambda: None)
    front = Front(Door(limits=Limits(waiting=WAITING)))
    page = Page(gguf.stem, described(gguf.stem, None))
    threading.Thread(target=front.answer, args=(keeper, page, SLOTS), daemon=True).start()
    time.sleep(0.5)
    well = under_load(front, keeper, seconds)
    compare_speed(front, keeper, pairs)
    turns(front)
    os._exit(0 if well else 1)  # the engine ends with us


def under_load(front: Front, keeper: Keeper, seconds: float) -> bool:
    """Whether each of many clients got its own answers, or 429."""
    found, lock, ends = Counter[str](), threading.Lock(), time.monotonic() + seconds
    before = resident_mb(os.getpid()), resident_mb(keeper._child.pid)
    peak = [0.0, 0.0]

    def client(number: int) -> None:
        count = 0
        while time.monotonic() < ends:
            count += 1
            outcome = one_answer(front.port, f"{number * 100_000 + count:07d}")
            with lock:
                found[outcome] += 1
            if outcome == "429":
                time.sleep(0.25)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for one in clients:
        one.start()
    while any(one.is_alive() for one in clients):
        now = resident_mb(os.getpid()), resident_mb(keeper._child.pid)
        peak = [max(pair) for pair in zip(peak, now, strict=True)]
        time.sleep(0.2)
    print(f"{CLIENTS} clients, {seconds:.0f} s, {THREADS} threads, {SLOTS} slots, {WAITING} places in the queue")
    print(", ".join(f"{outcome}: {count}" for outcome, count in sorted(found.items())))
    print(f"memory: front and clients {before[0]:.0f} to {peak[0]:.0f} MB, engine {before[1]:.0f} to {peak[1]:.0f} MB")
    print(f"engine restarts: {keeper.restarts}, running {front.line.running}, waiting {front.line.waiting}")
    return set(found) <= {"own", "429"} and found["own"] > 0 and not keeper.restarts


def one_answer(port: int, number: str) -> str:
    """`own`, `429`, or what went wrong."""
    body = {
        "messages": [{"role": "user", "content": f"Say the number {number}."}], "stream": True, "max_tokens": 40,
        "grammar": f'root ::= [a-z] [a-z]? " {number}"',
    }  # fmt: skip
    text = ""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            answer = connection.getresponse()
            if answer.status != 200:
                return str(answer.status)
            for line in answer:
                if line.startswith(b"data: {"):
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        except (OSError, http.client.HTTPException, KeyError, IndexError) as error:
            return type(error).__name__
    return "own" if text.split(" ")[-1] == number and len(text) <= len(number) + 3 else f"mixed up: {text!r}"


def compare_speed(front: Front, keeper: Keeper, pairs: int) -> None:
    """First token and tokens a second of the same question, through the front and straight from the engine."""
    assert keeper.engine
    ways: dict[str, tuple[int, dict[str, str]]] = {
        "engine": (int(keeper.engine.url.rpartition(":")[2]), dict(keeper.engine.headers)), "chat": (front.port, {})
    }  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(pairs + 1):
        order = list(ways) if number % 2 else list(ways)[::-1]
        for name in order:
            seen = timed(*ways[name], [{"role": "user", "content": QUESTION}], cache=False)
            if number:  # the first is warm-up
                found[name].append(seen[:2])
    for name, seen in found.items():
        first_s, per_s = (statistics.median(values) for values in zip(*seen, strict=True))
        print(f"{name}: first token {first_s:.3f} s, {per_s:.1f} tokens/s (medians of {pairs})")
    for index, what in enumerate(("first token", "tokens/s")):
        ratios = [ours[index] / own[index] for ours, own in zip(found["chat"], found["engine"], strict=True)]
        print(f"chat / engine, {what}: median of the pairs {statistics.median(ratios):.3f}")


def turns(front: Front) -> None:
    """Time to the first token of each turn of one conversation."""
    messages: list[dict[str, str]] = []
    firsts = []
    for number in range(TURNS):
        messages.append({"role": "user", "content": f"Part {number + 1}. {QUESTION}"})
        first_s, _, text, read, kept = timed(front.port, {}, messages, cache=True)
        messages.append({"role": "assistant", "content": text})
        firsts.append(f"turn {number + 1}: {first_s:.2f} s, {read} tokens read, {kept} kept")
    print("\n".join(firsts))


def timed(
    port: int, headers: dict[str, str], messages: list[dict[str, str]], *, cache: bool
) -> tuple[float, float, str, int, int]:
    """Seconds to the first text, tokens a second after it, the text, and prompt tokens that were read and kept."""
    body = {
        "messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": True, "cache_prompt": cache,
        "ignore_eos": not cache,
    }  # fmt: skip
    stamps, text, timings = list[float](), "", dict[str, Any]()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        started = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if piece := chunk["choices"][0]["delta"].get("content"):
                    stamps.append(time.perf_counter())
                    text += piece
                timings = chunk.get("timings", timings)
    per_s = (len(stamps) - 1) / (stamps[-1] - stamps[0])
    return stamps[0] - started, per_s, text, timings["prompt_n"], timings["cache_n"]


def resident_mb(pid: int) -> float:
    """Memory of a process that is in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
