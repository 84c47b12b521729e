"""Malformed requests to the chat: each must be answered below 500, or cut, and none may hang or end the engine.

    python benchmarks/fuzz_chat.py MODEL.gguf [requests] [seed]

Two thirds are a valid request with something wrong in it (a field of another type, a key too many, half a JSON, a
grammar that is none), one third goes through a raw socket (broken lines, headers, lengths, bytes, closed halves).
"""

import collections
import contextlib
import http.client
import json
import random
import socket
import subprocess
import sys
import time
from typing import Any

PATIENCE_S = 20.0  # an answer of four tokens takes some 0.1 s
FIELDS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "stream": False,
    "stop": ["x"], "seed": 1, "grammar": 'root ::= "a"', "logit_bias": {"5": 1}, "response_format": {"type": "text"},
    "tools": [], "n": 1, "logprobs": True, "top_logprobs": 2, "cache_prompt": True, "id_slot": 0, "samplers": ["top_k"],
    "json_schema": {"type": "object"}, "chat_template_kwargs": {"a": 1}, "lora": [], "n_probs": 1, "min_p": 0.1,
    "reasoning_format": "none", "dry_sequence_breakers": ["a"], "mirostat": 0, "t_max_predict_ms": 1,
}  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, -1e308, 2**63, 2**31, 1.5, "", "x", "\0", "\ud800", "a" * 5000, [], [[]], [None] * 50, {},
    {"a": {"b": []}}, [{"role": "user"}], [{"role": 5, "content": "x"}], [{"role": "user", "content": [{"type": "x"}]}],
    [{"content": "x"}], "NaN", ["a", 1, None],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
)  # fmt: skip
GRAMMARS = (
    "root ::= root",
    'root ::= "',
    "root ::= [",
    "root ::= x",
    "::=",
    'root ::= "a"{1,100000}',
    "root ::= (" * 500,
    'root ::= ("a"?)* "b"',
    "root ::= a a\na ::= b b\nb ::= root",
    "\x00",
    'root ::= "a" | ',
)
PATHS = ("/v1/chat/completions", "/completion", "/v1/completions", "/tokenize", "/apply-template", "/v1/models",
         "/v1/embeddings", "/infill", "/v1/responses", "/v1/messages", "/rerank", "/slots/0?action=save",
         "/login", "/lora-adapters", "/props", "/queue?ticket=%00", "/metrics", "/health", "/nowhere", "/?q=<script>",
         "/%2e%2e/%2e%2e/etc/passwd",         "/v1/chat/completions/control", "/v1/stream/x", "//evil/",
         "/models/load", "/tools")  # fmt: skip
LINES = (
    b"GET / HTTP/9.9", b"GET  / HTTP/1.1", b"GET /\x00 HTTP/1.1", b"\xff\xfe", b"", b"GET", b"POST / HTTP/1.1\x0b",
    b"GET http://evil/ HTTP/1.1", b"CONNECT evil:80 HTTP/1.1", b"TRACE / HTTP/1.1", b"get / http/1.1",
    b"PRI * HTTP/2.0",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.0", b"OPTIONS * HTTP/1.1",
)  # fmt: skip
HEADERS = (
    b"Host: localhost", b"Host: localhost", b"Host: evil", b"Host:", b"Content-Length: 5", b"Content-Length: -1",
    b"Content-Length: 5, 5", b"Content-Length: 99999999999999999999", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding : chunked", b" folded: x", b"X: " + b"y" * 20_000,
    b"Expect: 100-continue", b"Upgrade: websocket\r\nConnection: Upgrade", b"Connection: keep-alive", b": x",
    b"\x00: x",
    b"X: \xff\xfe", b"Cookie: tunesmith=;;=,\"", b"Authorization: Bearer \xff", b"X-Forwarded-For: ::1, x, ,",
    b"Range: bytes=0-", b"Accept-Encoding: identity;q=x", b"Origin: null", b"Sec-Fetch-Site: cross-site",
)  # fmt: skip


def main() -> None:
    """Send them and count the answers."""
    gguf, requests = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tunesmith", "chat", gguf, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as chat:
        assert chat.stderr
        while "Ctrl+C stops it" not in chat.stderr.readline():
            assert chat.poll() is None, "the chat has ended"
        found: collections.Counter[str] = collections.Counter()
        slowest_s = 0.0
        for number in range(requests):
            sent = raw_request(rng) if number % 3 == 2 else body_request(rng)
            started = time.monotonic()
            outcome = answered(port, sent, half_closed=rng.random() < 0.2)
            slowest_s = max(slowest_s, time.monotonic() - started)
            found[outcome] += 1
            if is_bad(outcome):
                print(f"request {number}: {outcome}: {sent[:300]!r}")
        metrics = http_get(port, "/metrics")
        restarts = next(line for line in metrics.splitlines() if line.startswith("tunesmith_engine_restarts_total"))
        chat.terminate()
    for outcome, count in sorted(found.items()):
        print(f"{outcome}: {count}")
    print(f"{requests} requests, slowest {slowest_s:.1f} s, {restarts}")
    sys.exit(any(map(is_bad, found)) or not restarts.endswith(" 0"))


def body_request(rng: random.Random) -> bytes:
    """HTTP as it should be, around a body that is wrong."""
    body = {name: FIELDS[name] for name in ("messages", "max_tokens", *rng.sample(list(FIELDS), 3))}
    for name in rng.sample(list(body), rng.randint(1, 2)):
        body[name] = rng.choice(ODD)
    if rng.random() < 0.15:
        body["grammar"] = rng.choice(GRAMMARS)
    text = json.dumps(body).encode()
    way = rng.random()
    if way < 0.1:
        text = text[: rng.randrange(len(text))]
    elif way < 0.15:
        text = rng.choice((b"[" * 100_000, b"null", b"5", b'"x"', b"{}", b"\xff\xfe{", b"{" * 9, b"NaN", b""))
    path = rng.choice(PATHS) if rng.random() < 0.4 else PATHS[0]
    method = rng.choice(("GET", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS")) if rng.random() < 0.1 else "POST"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + text


def raw_request(rng: random.Random) -> bytes:
    """Lines that are no HTTP, or nearly."""
    first = rng.choice(LINES) if rng.random() < 0.5 else b"POST /v1/chat/completions HTTP/1.1"
    headers = rng.sample(HEADERS, rng.randint(0, 5))
    body = rng.choice(
        (b"", b"{}", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", bytes(rng.randrange(256) for _ in range(200)))
    )
    sent = rng.choice((b"\r\n", b"\r\n", b"\n", b"\r")).join([first, *headers, b"", b""]) + body
    return sent[: rng.randrange(len(sent) + 1)] if rng.random() < 0.2 else sent


def answered(port: int, sent: bytes, *, half_closed: bool) -> str:
    """The status; `cut` where the connection ends without one, `not whole` where the request had ended too early."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
        whole = is_whole(sent)
        with contextlib.suppress(OSError):
            if half_closed or not whole:
                client.shutdown(socket.SHUT_WR)
        try:
            seen = b""
            while b"\r\n" not in seen.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""):
                if not (piece := client.recv(1 << 16)):
                    return "cut" if whole else "not whole"
                seen += piece
        except TimeoutError:
            return "hang"
        except ConnectionError:
            return "cut" if whole else "not whole"
    return seen.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").split(b" ")[1].decode()


def is_bad(outcome: str) -> bool:
    """An error of the chat's own, or no answer at all."""
    return outcome in ("hang", "cut") or outcome.startswith("5")


def is_whole(sent: bytes) -> bool:
    """Whether its head ends, and as many bytes follow as it says: else the chat rightly waits for more.

    One that is no HTTP at all, such as a line without an end, is answered where it can be, and cut where it ends.
    """
    head, end, body = sent.partition(b"\r\n\r\n")
    lengths = [
        line.split(b":")[1].split(b",")[0].strip()
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    return bool(end) and all(length.isdigit() and int(length) <= len(body) for length in lengths)


def http_get(port: int, path: str) -> str:
    """What the chat says at a path."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read().decode()


if __name__ == "__main__":
    main()
