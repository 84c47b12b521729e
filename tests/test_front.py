"""The chat is closed: what other origins, names and shapes of request get, from sockets and a real browser."""

import contextlib
import http.client
import http.server
import json
import re
import shutil
import socket
import threading
import time
from email.message import Message
from types import SimpleNamespace

import pytest
from playwright.sync_api import sync_playwright

from tunesmith.errors import RecipeError, ResourceError
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig
from tunesmith.server import protocol
from tunesmith.server.door import Door, checked_door
from tunesmith.server.front import Front
from tunesmith.server.guard import check_origins, judge
from tunesmith.server.keeper import Reached
from tunesmith.server.page import Page, described
from tunesmith.server.passing import Passing

EVIL = {"Origin": "http://evil.example"}
HI = json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 4})
NAMED = ["https://hub.example", "https://*.hub.example:8443", "moz-extension://0f-1"]
ROUTES = (
    ("GET", "/"), ("GET", "/v1/models"), ("GET", "/props"), ("GET", "/nowhere"), ("GET", "/slots"), ("GET", "/metrics"),
    ("POST", "/v1/chat/completions"), ("POST", "/completion"), ("POST", "/props"), ("POST", "/lora-adapters"),
    ("DELETE", "/v1/stream"), ("OPTIONS", "/v1/chat/completions"), ("HEAD", "/health"), ("PUT", "/v1/models"),
)  # fmt: skip


@pytest.fixture(scope="module")
def gguf(tiny_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_base, path, "F16", About("tiny", "tiny", None, ChatConfig()))
    return path


@pytest.fixture(scope="module")
def engine(gguf):
    with Engine(gguf, threads=1, context=512, slots=2, alias="sailor") as engine:
        yield engine


@contextlib.contextmanager
def opened(door, engine, name="sailor", slots=2, log=None, run=None):
    """A front of a door, whose engine is there already."""
    front, page = Front(door, log=log), Page(name, run or described(name, 'Be </script> "brief".'))
    reached = Reached(engine.url, engine.headers) if engine else None
    keeper = SimpleNamespace(engine=reached, restarts=0, first={"context": 512})
    thread = threading.Thread(target=front.answer, args=(keeper, page, slots), daemon=True)
    thread.start()
    try:
        yield front
    finally:
        front.stop()
        thread.join(10)


@pytest.fixture(scope="module")
def doors(engine):
    """Two doors of one engine: a closed one, and one that is open to named origins; and what went through."""
    through, passed_on = [], Passing._ask_engine

    async def noted(self, answer):
        through.append((answer.asked.method, answer.asked.path))
        await passed_on(self, answer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passing, "_ask_engine", noted)
        named = checked_door(origins=NAMED)
        with opened(Door(), engine) as closed, opened(named, engine) as open_to_some:
            yield closed, open_to_some, through


def send(url, method, path, body=None, **headers):
    """(status, headers by name in small letters, body)"""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)) as connection:
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def raw(door, *pieces):
    """All that comes back for bytes."""
    with socket.create_connection(("127.0.0.1", door.port), timeout=20) as client:
        client.sendall(b"".join(pieces))
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def cors(headers):
    return [name for name in headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "sender",
    [
        EVIL, {"Origin": "null"}, {"Origin": "http://localhost:3000"}, {"Origin": "https://127.0.0.1"},
        {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "localhost.evil.example:80"},
        {"Host": "evil.example", "Origin": "http://evil.example"}, {"Host": "0.0.0.0:80"}, {"Host": ""},
    ],
)  # fmt: skip
def test_another_origin_and_another_name_get_nothing_anywhere(doors, sender):
    """Neither an answer, nor leave to read one, nor any work of the engine; on every route, preflight and error."""
    closed, _, through = doors
    before = len(through)
    for method, path in ROUTES:
        body = HI if method == "POST" else None
        status, headers, text = send(closed.url, method, path, body, Content_Type="text/plain", **sender)
        assert status == 403 and cors(headers) == [], (method, path, status, headers)
        assert b"sailor" not in text
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'self'"
    assert len(through) == before


@pytest.mark.parametrize(
    ("headers", "advised"),
    [
        ({"Origin": "null"}, "http://127.0.0.1:8000"), ({"Origin": "file://"}, "http://127.0.0.1:8000"),
        ({"Origin": "http://my_app:3000"}, "http://my_app:3000"), ({"Origin": "https://a b"}, None),
        ({"Origin": "data:"}, None), ({"Host": "my_app:80"}, "https://my_app:80"), ({"Host": ""}, None),
    ],
)  # fmt: skip
def test_what_a_refusal_advises_is_taken_and_works(headers, advised):
    message = Message()
    for name, value in ({"Host": "localhost"} | headers).items():
        message[name] = value
    refused = judge("GET", "/props", message, ()).refused
    assert refused and (re.findall("--allow-origin (.*)", refused) or [None]) == [advised]
    if advised:
        named = check_origins([advised])
        message.replace_header("Host", headers.get("Host", "localhost"))
        if "Origin" in headers:
            message.replace_header("Origin", advised)
        assert not judge("GET", "/props", message, named).refused


def test_programs_and_the_page_itself_are_answered_without_leave_for_others(doors):
    closed, _, _ = doors
    port = closed.port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "localhost:8080"):
        for own in (
            {},
            {"Origin": f"http://{host}"},
            {"Authorization": "Bearer sk-any", "Sec-Fetch-Site": "same-origin"},
        ):
            status, headers, text = send(closed.url, "POST", "/v1/chat/completions", HI, Host=host, **own)
            assert status == 200 and cors(headers) == [] and json.loads(text)["model"] == "sailor", (host, own)
    for method, path, wanted in (
        ("GET", "/nowhere", 404), ("GET", "/slots", 404), ("POST", "/props", 404), ("GET", "/metrics", 200),
        ("POST", "/completion", 400), ("OPTIONS", "/props", 204), ("PUT", "/v1/models", 405), ("POST", "/", 404),
    ):  # fmt: skip
        status, headers, _ = send(closed.url, method, path, "{" if method == "POST" else None)
        assert (status, cors(headers)) == (wanted, []), (method, path)


def test_what_another_site_only_links_to_is_opened_without_what_the_address_says(doors):
    closed, _, through = doors
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    before = len(through)
    status, _, page = send(closed.url, "GET", "/?q=work", **link)
    assert status == 200 and b'content="0;url=./"' in page and b"work" not in page
    for method, path, how in (
        ("GET", "/props", link), ("POST", "/", link), ("GET", "/", link | {"Sec_Fetch_Mode": "no-cors"}),
        ("GET", "/v1/models", {"Sec_Fetch_Site": "same-site"}),
    ):  # fmt: skip
        assert send(closed.url, method, path, **how)[0] == 403, (method, path)
    assert len(through) == before


def test_origins_that_were_named_may_ask_and_read_and_those_that_look_like_them_not(doors):
    closed, door, _ = doors
    for sender in (
        "https://hub.example",
        "https://a.b.hub.example:8443",
        "HTTPS://HUB.example",
        "moz-extension://0f-1",
    ):
        status, headers, _ = send(door.url, "POST", "/v1/chat/completions", HI, Origin=sender)
        assert (
            status == 200 and headers["access-control-allow-origin"] == sender.lower() and headers["vary"] == "Origin"
        )
        asks = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-stainless-os"}
        status, headers, _ = send(door.url, "OPTIONS", "/v1/chat/completions", Origin=sender, **asks)
        assert status == 204 and headers["access-control-allow-headers"] == "x-stainless-os"
        assert send(closed.url, "GET", "/props", Origin=sender)[0] == 403
    for sender in (
        "http://hub.example", "https://evilhub.example", "https://hub.example.evil", "https://hub.example:8443",
        "https://evil/.hub.example:8443", "https://a.hub.example", "https://a.hub.example:84431", "null",
    ):  # fmt: skip
        status, headers, _ = send(door.url, "GET", "/props", Origin=sender)
        assert (status, cors(headers)) == (403, []), sender
    assert send(door.url, "GET", "/props", Host="hub.example", Origin="https://hub.example")[0] == 200  # a proxy's Host
    assert send(door.url, "GET", "/props", Host="evil.example", Origin="https://hub.example")[0] == 403
    assert "frame-ancestors 'self' https://hub.example https://*.hub.example:8443 moz-extension://0f-1" in str(
        send(door.url, "GET", "/props")
    )


@pytest.mark.parametrize(
    "origin",
    ["*", "hub.example", "https://hub.example/chat", "https://*", "null", "https://a b", "https://a\r\nX: y"],
)
def test_an_origin_that_is_none_is_refused_by_name(origin):
    with pytest.raises(RecipeError, match="is no origin of a web page") as caught:
        check_origins([origin])
    assert "https://hub.example" in caught.value.fix


def test_one_request_a_connection_and_none_that_two_servers_could_read_in_two_ways(doors):
    closed, _, through = doors
    hello = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert raw(closed, hello, b"GET /props HTTP/1.1\r\nHost: evil.example\r\n\r\n").count(b"HTTP/1.1 ") == 1
    before = len(through)
    post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    for head, status in (
        (post + b"Transfer-Encoding: chunked\r\n\r\n", b"411"), (post + b"Content-Length: +4\r\n\r\n", b"400"),
        (post + b"Content-Length: 99999999999\r\n\r\n", b"413"),
        (post + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", b"400"),
        (post + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"400"),
        (post + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", b"411"),
        (post + b"Host: evil.example\r\n\r\n", b"400"), (post + b"X: a\r\n Host: b\r\n\r\n", b"400"),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"403"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"), (b"nonsense\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n", b"400"),
    ):  # fmt: skip
        answer = raw(closed, head)
        assert answer.startswith(b"HTTP/1.1 " + status) and answer.count(b"HTTP/1.1 ") == 1, (head[:90], answer[:90])
    assert len(through) == before


def test_the_engine_behind_it_answers_nobody_without_its_key(engine):
    for path in ("/props", "/v1/models", "/slots", "/lora-adapters", "/nowhere"):
        status, headers, text = send(engine.url, "GET", path, **EVIL)
        assert status == 401 and cors(headers) == [] and b"sailor" not in text, path
    assert send(engine.url, "POST", "/v1/chat/completions", HI, Content_Type="text/plain")[0] == 401
    assert send(engine.url, "POST", "/v1/chat/completions", HI, **engine.headers)[0] == 200


@pytest.fixture(scope="module")
def quiet():
    """A door whose engine says what the test says; asks a client soon whether it still waits."""
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as engine:
        patch.setattr(protocol, "ASK_EVERY_S", 0.02)
        engine.settimeout(20)
        behind = SimpleNamespace(url=f"http://127.0.0.1:{engine.getsockname()[1]}", headers={})
        with opened(Door(), behind) as door:
            yield door, engine


GOES_ON = protocol.CONTINUE


@pytest.mark.parametrize(
    ("version", "way"), [(b"1.1", "waits"), (b"1.1", "waits, then goes"), (b"1.1", "goes"), (b"1.0", "waits")]
)
def test_who_sends_no_more_gets_the_answer_and_who_has_gone_ends_it(quiet, version, way):
    """A half-closed connection (nc -N) is none that was hung up; HTTP/1.0 has no way to tell them apart."""
    door, engine = quiet
    with socket.create_connection(("127.0.0.1", door.port), timeout=20) as client:
        client.sendall(b"GET /slow HTTP/" + version + b"\r\nHost: localhost\r\n\r\n")
        behind, _ = engine.accept()
        with behind:
            behind.settimeout(20)
            assert behind.recv(1 << 16).startswith(b"GET /slow")
            if way != "goes":
                client.shutdown(socket.SHUT_WR)
            if way != "goes" and version == b"1.1":
                assert client.recv(len(GOES_ON), socket.MSG_WAITALL) == GOES_ON
            if way == "waits" and version == b"1.1":
                behind.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not (seen := client.recv(1 << 16)).replace(GOES_ON, b"").startswith(b"HTTP/1.1 200"):
                    assert seen and not seen.replace(GOES_ON, b"")
                time.sleep(0.1)  # nothing is put into the answer
                behind.sendall(b"hello")
                assert client.recv(1 << 16) == b"5\r\nhello\r\n"
            else:
                if version == b"1.1":
                    client.close()
                assert behind.recv(1) == b""


def test_an_answer_comes_as_it_is_made(doors):
    body = json.dumps({"prompt": "a", "n_predict": 480, "ignore_eos": True, "stream": True}).encode()
    head = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", doors[0].port), timeout=20) as client:
        client.sendall(head % len(body) + body)
        seen = list(iter(lambda: client.recv(1 << 16), b""))
    assert len(seen) > 20 and b"".join(seen).count(b"data: ") > 300


def test_a_port_in_use():
    first = Front(Door())
    with pytest.raises(ResourceError, match=f"port {first.port} cannot be used") as caught:
        Front(Door(port=first.port))
    assert "--port" in caught.value.fix
    first.close()
    Front(Door(port=first.port)).close()  # free again at once


ATTACKS = """
<iframe name="inner"></iframe>
<form method="POST" enctype="text/plain" target="inner" action="CHAT/v1/chat/completions">
  <input name='{"prompt":"a","x":"' value='"}'>
</form>
<script>
  const done = [], body = JSON.stringify({messages: [{role: "user", content: "a"}], max_tokens: 4});
  const attack = async (name, path, options) => {
    try { done.push(name + ": " + await (await fetch("CHAT" + path, options)).text()); }
    catch (error) { done.push(name + ": " + error.name); }
  };
  (async () => {
    await attack("read", "/v1/models");
    await attack("post", "/v1/chat/completions", {method: "POST", body});
    await attack("json", "/completion", {method: "POST", body, headers: {"Content-Type": "application/json"}});
    await attack("blind", "/v1/chat/completions", {method: "POST", body, mode: "no-cors"});
    navigator.sendBeacon("CHAT/completion", body);
    document.forms[0].submit();
    const frame = document.createElement("iframe");
    frame.src = "CHAT/?q=work";
    frame.onload = () => document.title = done.join(", ");
    document.body.append(frame);
  })();
</script>
"""


@pytest.fixture(scope="module")
def evil_page(doors):
    """Address of a page of another origin that tries to use the closed door."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = ATTACKS.replace("CHAT", doors[0].url).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://evil.example:{server.server_address[1]}"
        server.shutdown()


def test_in_a_browser_no_page_of_another_origin_reads_from_the_model_or_makes_it_work(doors, evil_page):
    closed, _, through = doors
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP evil.example 127.0.0.1",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page()
        before = len(through)
        page.goto(evil_page)
        page.wait_for_function("document.title.includes('blind')")
        assert page.title() == "read: TypeError, post: TypeError, json: TypeError, blind: TypeError"
        rebound = page.goto(closed.url.replace("127.0.0.1", "evil.example") + "/v1/models")
        assert rebound.status == 403 and "sailor" not in page.content()
        assert len(through) == before
        page.goto(evil_page)  # and a link of that page: it opens the chat, and nothing is asked there
        page.evaluate(f"location.href = '{closed.url}/?q=work#/?q=work'")
        page.locator("textarea").wait_for()
        assert page.url == f"{closed.url}/"
        assert page.title() == "sailor" and {method for method, _ in through[before:]} <= {"GET", "POST"}
        assert not [path for _, path in through[before:] if "completion" in path]
        browser.close()
