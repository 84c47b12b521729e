"""What our shell adds to llama.cpp's page, in a real browser, with an engine that says what the test says."""

import contextlib
import gzip
import http.client
import http.server
import json
import shutil
import threading
import time

import pytest
from playwright.sync_api import sync_playwright
from test_front import opened

from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig
from tunesmith.server.door import Door, Limits
from tunesmith.server.page import described

KEY = "a-key-of-enough-letters"
EVIL = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
    "[a](javascript:document.title='owned') ![](http://203.0.113.1/pixel.png)\n\n"
    "```html\n<b>never closed\n| a | b |\n|--"
)
FACTS = [("Base", "<b>some/base</b>"), ("Licence", "apache-2.0")]
MOST_PAINT_MS, MOST_TOKEN_S = 5000, 5.0  # ten times what an idle machine takes


class StandIn:
    """An engine whose page is llama.cpp's own, and whose answers are the test's: pieces, one a `pause_s`."""

    def __init__(self, real):
        self.pieces, self.pause_s, self.cut, self.asked = ["a"], 0.0, threading.Event(), []
        own = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self):
                try:
                    body = b"".join(real._send(self.path, None, {"Accept-Encoding": "gzip"}))
                except Exception:
                    return self.send_error(404)
                packed = body[:2] == b"\x1f\x8b"
                self.send_response(200)
                kind = {"js": "text/javascript", "css": "text/css"}.get(self.path.rsplit(".", 1)[-1])
                as_json = self.path.startswith(("/props", "/v1/models"))
                self.send_header("Content-Type", kind or ("application/json" if as_json else "text/html"))
                if packed and self.path != "/":
                    self.send_header("Content-Encoding", "gzip")
                self.end_headers()
                self.wfile.write(gzip.decompress(body) if packed and self.path == "/" else body)

            def do_POST(self):
                if not self.path.endswith("/chat/completions"):
                    return self.send_error(404)
                own.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    for piece in own.pieces:
                        self.event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
                        time.sleep(own.pause_s)
                    self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    own.cut.set()

            def event(self, data):
                self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
                self.wfile.flush()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url, self.headers = f"http://127.0.0.1:{self.server.server_port}", {}

    @contextlib.contextmanager
    def running(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        yield self
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_base, path, "F16", About("tiny", "tiny", None, ChatConfig()))
    with Engine(path, threads=1, context=512, slots=1, alias="sailor") as real, StandIn(real).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def front(engine):
    run = described("sailor", "Be brief.", FACTS, ["Say hello.", "Why is the sky blue?"])
    with opened(Door(limits=Limits(waiting=2)), engine, slots=1, run=run) as front:
        yield front


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(request, browser, front):
    """On a desktop in light; on a phone in dark where a test asks for it."""
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    context = browser.new_context(**(phone if (is_phone := getattr(request, "param", False)) else {}))
    page = context.new_page()
    page.set_default_timeout(8000)
    page.is_phone, page.outside = is_phone, []
    page.on("request", lambda one: one.url.startswith((front.url, "data:", "blob:")) or page.outside.append(one.url))
    page.goto(f"{front.url}/")
    page.locator("textarea").wait_for()
    yield page
    context.close()


def answer(page):
    return page.get_by_label("Assistant message with actions").last


def settle(engine, *pieces, pause_s=0.0):
    engine.pieces, engine.pause_s = pieces, pause_s
    engine.cut.clear()
    engine.asked.clear()


@pytest.mark.parametrize("page", [False, True], ids=["desktop", "phone"], indirect=True)
def test_the_keyboard_alone_asks_an_example_and_reads_what_the_model_is(page, engine, front):
    settle(engine, "Hello", " there.")
    about = page.get_by_role("button", name="About this model")
    about.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="sailor")
    assert "<b>some/base</b>" in dialog.inner_text() and dialog.locator("b").count() == 0
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and about.evaluate("one => one === document.activeElement")
    example = page.get_by_role("list", name="Examples").get_by_role("button", name="Say hello.")
    example.focus()
    page.keyboard.press("Enter")
    assert page.locator("textarea").evaluate("one => [one.value, one === document.activeElement]") == [
        "Say hello.",
        True,
    ]
    page.get_by_role("button", name="Send").focus()
    page.keyboard.press("Enter")
    answer(page).get_by_text("Hello there.").wait_for()
    assert engine.asked[0]["messages"][-1]["content"] == "Say hello."
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0 and page.outside == []
    if page.is_phone:
        box = about.bounding_box()
        assert box["height"] >= 44 and box["x"] + box["width"] <= 390
        assert page.evaluate("document.documentElement.classList.contains('dark')")


def ask(page, text):
    page.locator("textarea").fill(text)
    page.get_by_role("button", name="Send").click()


def test_stop_in_the_middle_regenerate_and_reload(page, engine, front):
    settle(engine, *(f"word{n} " for n in range(200)), pause_s=0.03)
    ask(page, "Count.")
    answer(page).get_by_text("word3").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    assert engine.cut.wait(5)
    settle(engine, "once more")
    page.get_by_role("button", name="Regenerate").first.click()
    answer(page).get_by_text("once more").wait_for()
    page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
    page.reload()
    answer(page).get_by_text("once more").wait_for()  # the history is the browser's


def test_what_a_model_says_runs_as_nothing_and_loads_nothing(page, engine, front):
    settle(engine, *(EVIL[n : n + 7] for n in range(0, len(EVIL), 7)))
    ask(page, "Attack.")
    answer(page).get_by_text("never closed").wait_for()
    time.sleep(0.2)
    assert "owned" not in page.title() and page.outside == []
    shown = answer(page).locator(".markdown-content")
    assert shown.locator("script, img[onerror], a[href^='javascript:']").count() == 0
    settle(engine, "still here")
    ask(page, "And now?")
    answer(page).get_by_text("still here").wait_for()
    assert "script-src 'self' 'sha256-" in (policy := front._page.policy)
    assert "unsafe-eval" not in policy and "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_who_waits_sees_the_place_and_a_full_queue_says_when_to_come_back(page, engine, front):
    settle(engine, *(["long "] * 300), pause_s=0.05)
    with asking(front), asking(front):
        while front.line.waiting < 1:
            time.sleep(0.01)
        ask(page, "And me?")
        page.get_by_role("status").get_by_text("In the queue: place 2, about").wait_for()
    answer(page).get_by_text("long").wait_for()  # they have left
    assert page.locator("#run-queue").inner_text() == ""


def test_a_full_queue_says_when_to_come_back(page, engine, front):
    settle(engine, *(["long "] * 300), pause_s=0.05)
    with asking(front), asking(front), asking(front):
        while front.line.waiting < 2:
            time.sleep(0.01)
        ask(page, "And me?")
        page.get_by_role("status").get_by_text("The model is busy. Try again in").wait_for()


@contextlib.contextmanager
def asking(front):
    """A program that asks, and goes."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", front.port)) as connection:
        body = {"messages": [{"role": "user", "content": "a"}], "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        yield


def test_the_login_page_lets_in_with_the_key_alone(browser, engine):
    run = described("sailor", "Be brief.", FACTS, login=True)
    with opened(Door(key=KEY), engine, run=run) as front:
        page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
        page.goto(f"{front.url}/")
        assert page.url.endswith("/login") and page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("not the key")
        page.keyboard.press("Enter")
        page.get_by_role("alert").wait_for()
        page.get_by_label("Key of this chat").fill(KEY)
        page.keyboard.press("Enter")
        page.locator("textarea").wait_for()
        assert page.evaluate("document.cookie") == ""  # no script can read it
        settle(engine, "welcome")
        ask(page, "Hello?")
        answer(page).get_by_text("welcome").wait_for()
        page.get_by_role("button", name="About this model").click()
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("**/login")
        page.goto(f"{front.url}/")
        assert page.url.endswith("/login")
        page.context.close()


def test_from_the_first_paint_to_the_first_token_the_page_takes_next_to_nothing(browser, front, engine):
    """What is ours of the wait: the engine here answers at once."""
    page = browser.new_context().new_page()
    settle(engine, "ahoy")
    page.goto(f"{front.url}/")
    page.locator("textarea").wait_for()
    paint_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    started = time.monotonic()
    ask(page, "Hello?")
    answer(page).get_by_text("ahoy").wait_for()
    assert 0 < paint_ms < MOST_PAINT_MS and time.monotonic() - started < MOST_TOKEN_S
    page.context.close()
