"""Who serves more than himself: key, limits, queue, counts, and the client that most programs use."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from types import SimpleNamespace

import openai
import pytest
from test_front import opened

from tunesmith.errors import RecipeError, ResourceError
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference import child, serving
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig
from tunesmith.server import asked, keeper, protocol
from tunesmith.server import front as module
from tunesmith.server.answer import Answer
from tunesmith.server.door import Door, Limits, checked_door
from tunesmith.server.front import Front
from tunesmith.server.keeper import Keeper
from tunesmith.server.line import Line, Rates, TooMany
from tunesmith.server.login import Login, login_page

KEY = "a-key-of-enough-letters"
HI = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
LONG = HI | {"max_tokens": 400, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_base, path, "F16", About("tiny", "tiny", None, ChatConfig()))
    with Engine(path, threads=1, context=512, slots=2, alias="sailor") as engine:
        yield engine


@pytest.fixture(scope="module")
def locked(engine):
    with opened(Door(key=KEY), engine) as front:
        yield front


@pytest.fixture(scope="module")
def public(engine):
    """One slot, one place in the queue."""
    door = Door(public=True, limits=Limits(waiting=1, rate=6, at_once=2, answer=450, request_bytes=2000))
    with opened(door, engine, slots=1) as front:
        yield front


def send(front, method, path, body=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)) as connection:
        connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body, named)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def client(front, key="none"):
    return openai.OpenAI(base_url=f"{front.url}/v1", api_key=key, max_retries=0, timeout=20)


def test_the_openai_client_chats_streams_and_raises_its_own_errors(locked):
    with client(locked, KEY) as ours:
        assert [model.id for model in ours.models.list()] == ["sailor"]
        answer = ours.chat.completions.create(model="sailor", **HI)
        assert answer.choices[0].message.content and answer.usage.completion_tokens <= 4
        pieces = list(ours.chat.completions.create(model="sailor", stream=True, **HI))
        assert pieces[-1].choices[0].finish_reason and any(piece.choices[0].delta.content for piece in pieces)
        with pytest.raises(
            openai.BadRequestError, match=r"request \(\d{3,} tokens\) exceeds .* \(512 tokens\)"
        ) as long:
            ours.chat.completions.create(model="sailor", messages=[{"role": "user", "content": "xyz " * 2000}])
        assert long.value.body["n_prompt_tokens"] > 2000 and long.value.body["n_ctx"] == 512
        with pytest.raises(openai.NotFoundError):
            ours.files.retrieve("nothing")
    with (
        client(locked, "another-key-of-letters") as other,
        pytest.raises(openai.AuthenticationError, match="Bearer KEY"),
    ):
        other.models.list()


def test_without_the_key_there_is_a_login_and_the_rest_is_closed(locked):
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("GET", "/")):
        for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Cookie": "tunesmith=x"}, {"X-Api-Key": ""}):
            status, found, text = send(locked, method, path, "{}", **headers)
            assert status == 401 and found["www-authenticate"] == "Bearer" and b"sailor" not in text
    assert send(locked, "GET", "/health")[0] == 200
    assert send(locked, "GET", "/v1/models", X_Api_Key=KEY)[0] == 200
    status, headers, _ = send(locked, "GET", "/", Accept="text/html,*/*")
    assert status == 303 and headers["location"] == "./login"
    status, headers, page = send(locked, "GET", "/login")
    assert status == 200 and "default-src 'none'; style-src 'sha256-" in headers["content-security-policy"]
    assert b"<script" not in page
    assert send(locked, "POST", "/login", "key=wrong")[0] == 401
    assert send(locked, "POST", "/login", "a=1&b=2&c=3&d=4&e=5&key=")[0] == 401
    status, headers, _ = send(locked, "POST", "/login", f"key=+{KEY}%0A", Origin=f"http://127.0.0.1:{locked.port}")
    cookie = headers["set-cookie"]
    form = f"tunesmith-{locked.port}=[0-9a-f]{{64}}; Path=/; HttpOnly; SameSite=Strict"
    assert status == 303 and re.fullmatch(form, cookie)
    own = cookie.partition(";")[0]
    others = ("", 'x={"a":"b"}; ', "a[b]=1; ", "foo; ", "name@host=1; ", "a=b c;", f"{own.partition('=')[0][:-1]}0=1; ")
    for other in others:  # of other programs of this host, and of another chat
        assert send(locked, "GET", "/v1/models", Cookie=f"{other}{own}")[0] == 200
        assert send(locked, "GET", "/v1/models", Cookie=f"{own}; {other}")[0] == 200
    assert Login(KEY, 1).cookie(secure=False).partition("=")[0] == "tunesmith-1"  # another chat's, of another port
    codes = [send(locked, "POST", "/login", "key=guess")[0] for _ in range(8)]
    assert codes[-1] == 429 and send(locked, "POST", "/login", f"key={KEY}")[0] == 429  # also with the right one


@contextlib.contextmanager
def working(front, address, ticket="t"):
    """A streamed answer that has begun, of one address."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)) as connection:
        headers = {"X-Forwarded-For": address, "X-Ticket": ticket}
        connection.request("POST", "/v1/chat/completions", json.dumps(LONG), headers)
        yield connection


def queue(front, ticket="nobody"):
    return json.loads(send(front, "GET", f"/queue?ticket={ticket}")[2])


def until(holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def slowed(monkeypatch):
    """The engine's answers come slowly, so that others wait."""
    write = Answer.write

    async def slow(self, piece):
        await asyncio.sleep(0.05)
        await write(self, piece)

    monkeypatch.setattr(Answer, "write", slow)


def test_who_waits_has_a_place_one_more_gets_429_and_who_leaves_frees_both_at_once(public, monkeypatch):
    slowed(monkeypatch)
    with working(public, "9.9.9.1") as first:
        until(lambda: public.line.running == 1)
        with working(public, "9.9.9.2", "mine"):
            until(lambda: queue(public, "mine")["place"] == 1)
            status, headers, text = send(public, "POST", "/v1/chat/completions", HI, X_Forwarded_For="9.9.9.3")
            assert status == 429 and int(headers["retry-after"]) >= 1 and b"the queue is full" in text
            with client(public) as ours, pytest.raises(openai.RateLimitError, match="the queue is full"):
                ours.chat.completions.create(model="sailor", extra_headers={"X-Forwarded-For": "9.9.9.4"}, **HI)
        until(lambda: public.line.waiting == 0)  # it left the queue
        assert public.line.running == 1 and not first.sock._closed
        first.close()
        until(lambda: public.line.running == 0)
    assert send(public, "POST", "/v1/chat/completions", HI, X_Forwarded_For="9.9.9.5")[0] == 200


def test_an_address_has_a_share_and_only_a_proxy_beside_us_names_it(public):
    def ask(address):
        return send(public, "POST", "/v1/chat/completions", HI, X_Forwarded_For=address)

    assert [ask("8.8.8.7")[0] for _ in range(7)] == 6 * [200] + [429]
    assert ask("9.9.9.77, 8.8.8.7")[0] == 429  # what the client wrote itself stands first
    assert ask("8.8.8.7, 10.0.0.3")[0] == 429  # a proxy of the same network stands last
    _, headers, text = ask("8.8.8.7")
    assert 1 <= int(headers["retry-after"]) <= 60 and b"more than 6 requests a minute" in text
    assert ask("8.8.8.8")[0] == 200
    assert asked._forwarded(asked.Headers({"x-forwarded-for": "8.8.8.7"}), "9.9.9.9") == "9.9.9.9"
    assert asked._forwarded(asked.Headers({"x-forwarded-for": "2001:db8::7, ::1"}), "127.0.0.1") == "127.0.0.1"
    for named, address in (
        ("2a00:1450::7", "2a00:1450::/64"), ("[2a00:1450::7]:443", "2a00:1450::/64"), ("8.8.4.4:4711", "8.8.4.4"),
        ("::ffff:8.8.4.4", "8.8.4.4"), ("[::ffff:8.8.4.4]:1, 10.0.0.3:99", "8.8.4.4"), ("nobody", "127.0.0.1"),
    ):  # fmt: skip
        assert asked._forwarded(asked.Headers({"x-forwarded-for": named}), "127.0.0.1") == address, named


def test_in_public_any_name_is_answered_but_no_other_site_and_nothing_but_the_chat(public):
    assert send(public, "GET", "/v1/models", Host="me-bot.spaces.example")[0] == 200
    own = {"Host": "me.example", "Origin": "https://me.example"}
    assert send(public, "GET", "/v1/models", **own)[0] == 200
    assert send(public, "GET", "/v1/models", Host="me.example", Origin="https://evil.example")[0] == 403
    for method, path in (
        ("GET", "/slots"), ("GET", "/lora-adapters"), ("POST", "/completion"), ("POST", "/lora-adapters"),
        ("POST", "/tokenize"), ("GET", "/%73lots"), ("DELETE", "/v1/models"),
    ):  # fmt: skip
        status, _, text = send(public, method, path, "{}")
        assert status == 404 and b"there is nothing of that name here" in text, path
    for path in ("/_app/../slots%2f", "/_app/%2e%2e/slots", "/./slots", "//slots", "/v1/..", "/v1\\..\\slots"):
        status, _, text = send(public, "GET", path)
        assert status == 403 and b"empty or dotted parts" in text, path
    status, _, text = send(public, "GET", "/props")
    assert status == 200 and b"tiny.gguf" not in text and json.loads(text)["model_path"] == "sailor"
    assert send(public, "POST", "/v1/chat/completions", "x" * 2001)[0] == 413
    assert send(public, "POST", "/v1/chat/completions", "[" * 2000)[0] == 400


def test_an_answer_is_no_longer_than_the_door_allows(engine):
    with opened(Door(limits=Limits(answer=5)), engine) as front:
        for asks in (
            {}, {"max_tokens": 6}, {"max_tokens": -1}, {"max_tokens": None}, {"max_completion_tokens": 1e9},
            {"n_predict": 99, "max_tokens": 3},
        ):  # fmt: skip
            body = {"messages": HI["messages"], "ignore_eos": True} | asks
            status, _, text = send(front, "POST", "/v1/chat/completions", body)
            assert status == 200 and json.loads(text)["usage"]["completion_tokens"] <= 5, asks
        for path in ("/completion", "/v1/messages", "/infill"):
            status, _, text = send(front, "POST", path, {"prompt": "a", "messages": HI["messages"], "n_predict": 12})
            assert status == 404 and b"bounded" in text
        for asks in ({"n": 2}, {"n_cmpl": 2}, {"max_tokens": "many"}):
            assert send(front, "POST", "/v1/chat/completions", HI | asks)[0] == 400, asks


def test_metrics_count_what_happened_without_texts(locked):
    bearer = {"Authorization": f"Bearer {KEY}"}
    secret = HI | {"messages": [{"role": "user", "content": "swordfish"}], "stream": True}
    assert send(locked, "POST", "/v1/chat/completions", secret, **bearer)[0] == 200
    status, headers, text = send(locked, "GET", "/metrics", **bearer)
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    found = dict(line.rsplit(" ", 1) for line in lines)
    assert float(found['tunesmith_tokens_total{kind="answer"}']) >= 1
    assert float(found['tunesmith_tokens_total{kind="prompt"}']) > 1
    assert found["tunesmith_engine_up"] == "1" and found["tunesmith_running"] == "0"
    assert int(found["tunesmith_first_token_seconds_count"]) >= 1
    assert int(found['tunesmith_first_token_seconds_bucket{le="+Inf"}']) == int(
        found["tunesmith_first_token_seconds_count"]
    )
    assert b"swordfish" not in text and KEY.encode() not in text


def test_the_log_has_texts_only_if_asked_for(engine):
    for door in (Door(log=True), Door(log_texts=True)):
        lines = []
        with opened(door, engine, log=lines.append) as front:
            send(front, "POST", "/v1/chat/completions", HI | {"messages": [{"role": "user", "content": "swordfish"}]})
        (line,) = lines
        assert re.match(r"/v1/chat/completions 200, \d+ tokens read, \d made, [\d.]+ s", line)
        assert ("swordfish" in line) == door.log_texts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 lets other machines in, and there is no key"),
        ({"public": True, "key": KEY}, "--public lets everybody in, and a key"),
        ({"key": "short"}, "is no line of 16 letters"),
        ({"key": "a key with spaces in it"}, "is no line of 16 letters"),
        ({"key": ""}, "is no line of 16 letters"),
        ({"key": None}, "--api-key names no file with a key"),
    ],
)
def test_a_door_that_is_open_by_oversight_is_refused(tmp_path, options, said):
    given = dict(options)
    if "key" in given:
        given["key_file"] = tmp_path / "key.txt"
        if (key := given.pop("key")) is not None:
            given["key_file"].write_text(f"{key}\n")
    with pytest.raises(RecipeError, match=said) as caught:
        checked_door(**given)
    assert "token_urlsafe" in caught.value.fix or "leave one" in caught.value.fix


def test_a_key_comes_from_the_environment_too_and_a_door_knows_its_names(monkeypatch):
    monkeypatch.setenv("TUNESMITH_API_KEY", KEY)
    door = checked_door(host="0.0.0.0")
    assert door.key == KEY and door.beyond and door.limits.rate is None
    names = {name: door.names.hold(name) for name in ("localhost", "192.168.1.7", "[fe80::1]", "evil.example")}
    assert list(names.values()) == [True, True, True, False]
    monkeypatch.delenv("TUNESMITH_API_KEY")
    space = checked_door(host="0.0.0.0", port=7860, public=True)
    assert space.limits.rate == 20 and space.limits.answer == 1024 and space.names.hold("any.example")
    assert not checked_door(host="::1").beyond and not checked_door(host="localhost").beyond


def test_a_host_that_is_not_this_machines_is_said():
    with pytest.raises(ResourceError, match="is no address of this machine"):
        Front(Door(host="9.9.9.1"))


def test_a_turn_that_is_given_in_the_moment_its_owner_leaves_goes_to_the_next():
    async def play():
        line, order = Line(1, Limits(waiting=3)), []

        async def one(name, hold):
            async with line.turn(name, "a"):
                order.append(name)
                await hold.wait()

        holds = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.create_task(one(str(n), hold)) for n, hold in enumerate(holds)]
        await asyncio.sleep(0)
        assert (line.running, line.waiting, line.place("2")) == (1, 2, 2)
        holds[0].set()
        await asyncio.sleep(0)  # the turn is set, its owner has not run yet
        tasks[1].cancel()
        holds[2].set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (line.running, line.waiting) == (0, 0) and order[-1] == "2"

    asyncio.run(asyncio.wait_for(play(), 10))


def test_addresses_are_forgotten(monkeypatch):
    monkeypatch.setattr("tunesmith.server.line.KNOWN_ADDRESSES", 3)
    rates = Rates(1)
    for address in "abcd":
        rates.count(address)
    with pytest.raises(TooMany):
        rates.count("d")
    rates.count("a")  # it was the oldest
    assert len(rates._asked) == 3


def test_requests_with_one_ticket_each_get_their_turn_and_count_in_the_queue():
    line, done = Line(1, Limits(waiting=2)), []

    async def ask(number):
        async with line.turn("one ticket", "9.9.9.1"):
            await asyncio.sleep(0.01)
            done.append(number)

    async def ask_all():
        asked = [asyncio.ensure_future(ask(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert line.waiting == 2 and line.place("one ticket") == 1
        with pytest.raises(TooMany, match="the queue is full"):
            await ask(3)
        await asyncio.wait_for(asyncio.gather(*asked), 5)

    asyncio.run(ask_all())
    assert done == [0, 1, 2] and line.running == line.waiting == 0


def test_a_name_is_text_on_the_login_page():
    page = login_page("<script>alert(1)</script> {wrong}", wrong=False)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; {wrong}" in page and "<script" not in page


def dying(monkeypatch, first_wait_s=0.0, on_start=lambda starts: None, on_wait=lambda: None):
    """Engines that end as soon as they answer: a keeper starts these. What each start and wait does is the test's."""
    starts = []

    class Dying:
        def __init__(self, module, job, name):
            starts.append(name)

        def read(self):
            on_start(len(starts))
            return {"url": "http://127.0.0.1:1", "key": "k"}

        def wait(self):
            on_wait()
            raise ResourceError("it was killed", fix="free some memory")

        def close(self):
            pass

    monkeypatch.setattr(keeper, "Child", Dying)
    monkeypatch.setattr(keeper, "FIRST_WAIT_S", first_wait_s)
    return starts


def test_an_engine_that_dies_again_and_again_is_given_up_with_the_reason(monkeypatch):
    started = dying(monkeypatch, 0.001)
    events, ended = [], threading.Event()
    kept = Keeper({"alias": "sailor"}, events.append, ended.set)
    assert ended.wait(10)
    assert len(started) == 5 and kept.engine is None and kept.restarts == 4
    assert events.count("it was killed; it is started again") == 4
    assert "the engine ended 5 times within 120 s, the last time so: it was killed" in kept.reason.what


def test_an_engine_for_everybody_is_started_again_for_ever(monkeypatch):
    enough = threading.Event()
    dying(
        monkeypatch,
        on_start=lambda starts: enough.set() if starts > 6 else None,
        on_wait=lambda: time.sleep(3600) if enough.is_set() else None,
    )
    kept = Keeper({"alias": "sailor"}, [].append, lambda: pytest.fail("it was given up"), patient=True)
    assert enough.wait(10) and kept.reason is None


def test_an_engine_for_everybody_that_does_not_start_any_more_is_given_up(monkeypatch):
    def gone(starts):
        if starts > 1:
            raise ResourceError("its file is gone", fix="put it back")

    starts = dying(monkeypatch, on_start=gone)
    ended = threading.Event()
    kept = Keeper({"alias": "sailor"}, [].append, ended.set, patient=True)
    assert ended.wait(10) and len(starts) == 6 and "its file is gone" in kept.reason.what


def test_an_engine_that_does_not_answer_is_not_healthy(engine, monkeypatch):
    monkeypatch.setattr(module, "HEALTH_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as stuck:  # takes the request, and says nothing
        silent = SimpleNamespace(url=f"http://127.0.0.1:{stuck.getsockname()[1]}", headers={})
        with opened(Door(), silent) as front:
            assert send(front, "GET", "/health")[0] == 503
            assert json.loads(send(front, "GET", "/health")[2]) == {"status": "the engine does not answer"}
    with opened(Door(), engine) as front:
        assert json.loads(send(front, "GET", "/health")[2]) == {"status": "ok"}


def test_connections_that_say_nothing_keep_nobody_out(engine, monkeypatch):
    monkeypatch.setattr(protocol, "MOST_UNSAID", 5)
    with opened(Door(), engine) as front, contextlib.ExitStack() as idle:
        silent = [idle.enter_context(socket.create_connection(("127.0.0.1", front.port), 5)) for _ in range(12)]
        for client in silent:
            client.sendall(b"GET / HT")
        assert send(front, "GET", "/health")[0] == 200
        cut = 0
        for client in silent:
            client.settimeout(0.2)
            try:
                cut += client.recv(1) == b""
            except ConnectionError:
                cut += 1
            except TimeoutError:
                pass
        assert cut >= 7


def test_what_an_engine_prints_of_requests_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(serving, "MOST_PRINTED_BYTES", 10)
    with (tmp_path / "printed").open("wb+") as file:
        kept = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            os.write(2, b"root ::= secret\n")
            serving._forget_what_is_printed()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        assert (tmp_path / "printed").stat().st_size == 0


def test_what_is_printed_after_it_was_cut_begins_at_its_start():
    with contextlib.closing(child._unnamed_file()) as file:
        other = os.dup(file.fileno())  # as the process has it
        os.write(other, b"x" * 1000)
        os.ftruncate(file.fileno(), 0)
        os.write(other, b"the end")
        os.close(other)
        assert os.pread(file.fileno(), 100, 0) == b"the end"


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_addresses_of_this_machine_are_its_names(engine):
    for host in ("127.0.0.2", *(["::1"] if has_ipv6() else [])):
        with opened(Door(host=host), engine) as front:
            name = f"[{host}]" if ":" in host else host
            assert front.url == f"http://{name}:{front.port}"
            with contextlib.closing(http.client.HTTPConnection(host, front.port, timeout=20)) as connection:
                connection.request("GET", "/v1/models", headers={"Host": f"{name}:{front.port}"})
                assert connection.getresponse().status == 200
    if has_ipv6():
        front = Front(Door(host="::", key=KEY))
        assert front.url == f"http://[::1]:{front.port}"
        front.close()
    assert checked_door(host=" [::1] ").host == "::1"
    with pytest.raises(RecipeError, match="--host is empty"):
        checked_door(host="")


def test_a_browser_that_logs_out_is_asked_for_the_key_again(locked):
    status, headers, _ = send(locked, "POST", "/logout", "", Cookie="tunesmith=any", Authorization=f"Bearer {KEY}")
    assert (status, headers["location"]) == (303, "./login")
    assert headers["set-cookie"] == f"tunesmith-{locked.port}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"
    assert send(locked, "POST", "/logout", "")[0] == 303  # in a tab that outlived its chat
    assert send(locked, "POST", "/logout", "", Origin="http://evil.example")[0] == 403
