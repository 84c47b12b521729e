"""The chat as a user has it: a real server process, a real browser, a real terminal."""

import contextlib
import http.client
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from playwright.sync_api import sync_playwright

from tunesmith.gguf.write import About, write_gguf
from tunesmith.recipe import ChatConfig, Recipe
from tunesmith.recipe_file import dump_recipe
from tunesmith.runs import Run
from tunesmith.weights import builtin
from tunesmith.weights.locate import cache_folder

QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
TUNESMITH = (sys.executable, "-c", "from tunesmith.cli import main; main()")
SYSTEM = "Be brief."
CHAT = (*TUNESMITH, "chat", "--threads", "1")
"""With two threads llama.cpp waits for the slower one, which on a busy machine has none of it."""
LONG = "Write a long story about the sea."


@pytest.fixture(scope="module")
def run_folder(builtin_base, tmp_path_factory):
    """A run called `sailor` whose GGUF is the built-in base, answering greedily."""
    run = Run(tmp_path_factory.mktemp("runs") / "sailor")
    recipe = Recipe(
        name="sailor",
        base=builtin_base.name,
        data={"sources": [{"path": "a/b"}]},
        chat={"system": SYSTEM, "temperature": 0.0, "context": 2048},
    )
    run.gguf.mkdir(parents=True)
    run.recipe.write_text(dump_recipe(recipe))
    source = builtin.fetch_builtin(builtin_base.name, cache_folder() / "builtin")
    run.gguf_file(recipe.name, recipe.evaluate.gguf).symlink_to(source)
    return run.path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(run_folder):
    """(process, port) of `tunesmith chat`, once it says that it answers."""
    port = free_port()
    command = [*CHAT, str(run_folder), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr.readline() == f"chat: opening {run_folder}\n"
            assert process.stderr.readline() == f"system prompt: {SYSTEM}\n"
            assert process.stderr.readline() == "sampling: temperature 0, top_p 0.9\n"
            assert process.stderr.readline() == (
                f"sailor answers at http://127.0.0.1:{port} (API: http://127.0.0.1:{port}/v1/chat/completions)\n"
            )
            assert f"ssh -L {port}:localhost:{port} " in process.stderr.readline()
            assert process.stderr.readline() == "Ctrl+C stops it\n"
            yield process, port
        finally:
            process.kill()


def child_of(pid):
    """Number of the one process that another has started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        (child,) = file.read().split()
    return int(child)


def engine_of(process):
    """Number of the engine's process: the front's child, which is the command's."""
    front = child_of(process.pid)
    threads = os.listdir(f"/proc/{front}/task")
    (child,) = [int(number) for thread in threads for number in children_of(front, thread)]
    return child


def children_of(pid, thread):
    with open(f"/proc/{pid}/task/{thread}/children") as file:
        return file.read().split()


@pytest.fixture(scope="module")
def serving_all(run_folder):
    with serving(run_folder) as (process, port):
        yield process, port


@pytest.fixture(scope="module")
def server(serving_all):
    return serving_all[1]


@pytest.fixture(scope="module")
def idle(serving_all):
    """Whether the engine rests: it takes no time of the processor."""
    stat = f"/proc/{engine_of(serving_all[0])}/stat"

    def ticks():
        with open(stat) as file:
            return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))

    def rests():
        before = ticks()
        time.sleep(0.2)
        return ticks() - before <= 1

    return rests


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server}/")
    page.locator("textarea").wait_for()
    yield page
    page.close()


def ask(page, question):
    """Send it, and wait for what the page puts below it for the answer."""
    answers = page.get_by_label("Assistant message with actions")
    before = answers.count()
    page.locator("textarea").fill(question)
    page.keyboard.press("Enter")
    answers.nth(before).wait_for()


def wait_until(holds, else_said, limit_s=60):
    """Wait until `holds()` is true; fail with what is then to be said."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, else_said
        time.sleep(0.02)


def shown(page):
    """The newest answer as the page shows it; empty before its first token."""
    answer = page.get_by_label("Assistant message with actions").last.locator(".markdown-content")
    return answer.inner_text() if answer.count() else ""


def settled(page):
    """The newest answer once it stays as it is: the page may show its last piece after the engine has ended."""
    looks = [shown(page)]

    def stays():
        time.sleep(0.3)
        looks.append(shown(page))
        return looks[-1] == looks[-2]

    wait_until(stays, "the answer goes on and on", limit_s=10)
    return looks[-1]


def get(port, path, body=None):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
        return json.loads(connection.getresponse().read())


def test_page_shows_an_answer_that_ends_by_itself(page, server):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Say hello."}]
    answer = get(server, "/v1/chat/completions", {"messages": messages})
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["model"] == "sailor"
    sent = []
    page.on("request", lambda request: sent.append(request) if request.url.endswith("/completions") else None)
    ask(page, "Say hello.")
    wanted = answer["choices"][0]["message"]["content"]
    # greedy in the page too: the recipe's sampling
    wait_until(lambda: shown(page).strip() == wanted, "another answer than the API's")
    page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
    body = json.loads(sent[0].post_data)
    assert settled(page).strip() == wanted and body["messages"] == messages and not {"temperature", "tools"} & set(body)
    answer = page.get_by_label("Assistant message with actions").last
    wait_until(lambda: "sailor" in answer.inner_text(), "the page does not name the model")


def test_page_shows_the_run_and_offers_what_the_model_can(page):
    shown = page.evaluate(
        "[...document.querySelectorAll('h1, h1 + p')].map((e) => getComputedStyle(e, '::after').content)"
    )
    assert page.title() == "sailor" and shown == ['"sailor"', f'"System prompt:\\a {SYSTEM}"']
    ask(page, "Say hello.")
    page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
    assert page.get_by_label("System message with actions").inner_text().strip() == SYSTEM
    assert page.title() == "Say hello. - sailor"
    page.get_by_label("Expand navigation").click()
    page.get_by_role("button", name="Settings").wait_for()
    offered = {(one.get_attribute("aria-label") or one.inner_text()).strip() for one in page.get_by_role("button").all()
               if one.is_visible()}  # fmt: skip
    assert {"Settings", "Send", "sailor"} <= offered
    assert not [one for one in offered if re.match("Add files|Models|MCP|Reasoning", one)], offered
    kept = page.evaluate("navigator.serviceWorker.register('./sw.js').then(() => 'kept', (error) => error.name)")
    assert kept == "SecurityError"  # it would show this run's page for the next one
    form = page.locator("form")
    page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add(new File(["a text"], "notes.txt", {type: "text/plain"}));
        for (const kind of ["dragenter", "dragover", "drop"])
            document.querySelector("textarea").dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true}));
    }""")
    time.sleep(0.3)
    assert "notes.txt" not in form.inner_text()


def test_settings_of_another_run_at_the_same_address_do_not_stay(page, server):
    """A browser keeps the page's settings by address, and every run is at the same one."""
    page.evaluate("""() => {
        localStorage.setItem("tunesmith.run", JSON.stringify({name: "other"}));
        localStorage.setItem("LlamaUi.config", JSON.stringify({systemMessage: "Be rude.", theme: "dark"}));
    }""")
    page.reload()
    page.locator("textarea").wait_for()
    kept = page.evaluate("JSON.parse(localStorage.getItem('LlamaUi.config'))")
    assert (kept["systemMessage"], kept["theme"]) == (SYSTEM, "dark")
    page.evaluate("localStorage.setItem('LlamaUi.config', JSON.stringify({systemMessage: 'Mine.'}))")
    page.reload()
    page.locator("textarea").wait_for()
    assert page.evaluate("JSON.parse(localStorage.getItem('LlamaUi.config')).systemMessage") == "Mine."  # the user's


def test_who_hangs_up_before_the_answer_comes_ends_it(server, idle):
    body = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 2000}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        wait_until(lambda: not idle(), "the engine does not begin", limit_s=10)
    wait_until(idle, "the engine goes on for nobody", limit_s=10)


def test_page_streams_an_answer_and_stops_it(page, idle):
    ask(page, LONG)
    seen = [""]
    for _ in range(4):  # the text grows before our eyes
        wait_until(lambda: shown(page) not in ("", seen[-1]), seen)
        seen.append(shown(page))
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_until(idle, "the engine goes on after the stop button", limit_s=10)
    text = settled(page)
    assert all(text.startswith(earlier.rstrip()) for earlier in seen), (seen, text)
    time.sleep(0.5)
    assert shown(page) == text
    assert len(text) < 4000  # it was stopped: the whole answer fills the context, some 8000 letters
    ask(page, "Say hello.")  # and the conversation goes on
    assert page.get_by_label("Assistant message with actions").count() == 2
    wait_until(lambda: shown(page), "no second answer")


def test_page_and_api_use_the_sampling_of_the_recipe(server):
    defaults = get(server, "/props")
    assert defaults["model_alias"] == "sailor" and defaults["total_slots"] == 2
    settings = defaults["default_generation_settings"]
    assert settings["n_ctx"] == 2048  # of each slot
    names = ("temperature", "top_p", "top_k", "min_p")
    assert [round(settings["params"][name], 3) for name in names] == [0.0, 0.9, 0, 0.0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_the_page_reads_an_answer(run_folder, browser, number):
    with serving(run_folder) as (process, port):
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        ask(page, LONG)
        wait_until(lambda page=page: shown(page), "no answer")
        process.send_signal(number)
        assert process.wait(timeout=20) == 0
        assert process.stdout.read() == "" and process.stderr.read() == "stopped\n"
        page.close()


def test_a_port_in_use_is_an_error_with_the_fix(run_folder, server):
    command = [*CHAT, str(run_folder), "--port", str(server)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7 and "Traceback" not in done.stderr
    assert f"port {server} cannot be used" in done.stderr and "--port" in done.stderr


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("nowhere", 2, "there is no run and no file"),
        ("notes.gguf", 4, "notes.gguf is no GGUF file"),
        (".", 2, "is no run folder: it has no recipe.yaml"),
        ("mine.yaml", 2, "is a recipe: its run is what can be chatted with"),
    ],
)
@pytest.mark.parametrize("way", [[], ["--cli"]])
def test_a_missing_run_and_a_file_that_is_no_gguf(tmp_path, name, code, said, way):
    (tmp_path / "notes.gguf").write_text("my notes")
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    command = [*CHAT, str(tmp_path / name), *way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
    assert "GGUF file" in done.stderr and "cannot be read" not in done.stderr


@pytest.mark.parametrize("way", [[], ["--cli"]])
def test_a_file_that_llama_cpp_gives_up_at_is_an_error_in_one_line(tiny_base, tmp_path, way):
    gguf = tmp_path / "twice.gguf"
    write_gguf(tiny_base, gguf, "F16", About("tiny", "tiny", None, ChatConfig()))
    one, two = (len(letter).to_bytes(8, "little") + letter for letter in (b"a", b"b"))
    gguf.write_bytes(gguf.read_bytes().replace(one, two, 1))  # two tokens of one text
    command = [*CHAT, str(gguf), "--port", str(free_port()), *way]
    done = subprocess.run(command, input="Hello.\n", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7 and "llama.cpp gave up" in done.stderr, done.stderr
    assert "delete gguf/" in done.stderr and len(done.stderr.splitlines()) < 10 and done.stdout == ""


def test_an_engine_that_is_killed_ends_the_terminal_chat_with_an_error(run_folder):
    command = [*CHAT, str(run_folder), "--cli"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdin.write(f"{LONG}\n".encode())
        process.stdin.flush()
        assert process.stdout.read(1)  # inside the answer
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            os.kill(int(file.read()), signal.SIGKILL)
        assert process.wait(timeout=20) == 7
        said = process.stderr.read().decode()
    assert "error: the process that answers with sailor ended with code -9" in said and "Traceback" not in said


def test_an_engine_that_is_killed_is_started_again_and_a_front_that_is_killed_ends_the_chat(run_folder):
    with serving(run_folder) as (process, port):
        for _ in range(2):  # said once
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                connection.request("GET", "/props", headers={"Origin": "http://evil.example"})
                assert connection.getresponse().status == 403
        body = {"messages": [{"role": "user", "content": LONG}], "stream": True}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            answer = connection.getresponse()
            seen = answer.readline()
            os.kill(engine_of(process), signal.SIGKILL)
            seen += answer.read()
        assert b'"type": "server_error"' in seen and b"it is started again" not in seen.partition(b"server_error")[0]
        wait_until(lambda: status(port, "/v1/models") == 200, "it does not come back")
        assert status(port, "/health") == 200
        os.kill(child_of(process.pid), signal.SIGKILL)
        assert process.wait(timeout=20) == 7
        said = process.stderr.read()
        assert "error: the process that answers with sailor ended with code -9" in said and "Traceback" not in said
        assert said.count("warning: a request was refused: http://evil.example is another origin: ") == 1
        assert "ended with code -9: it was killed" in said and "; it is started again" in said


def status(port, path):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def test_a_signal_while_it_loads_ends_it(run_folder):
    command = [*CHAT, str(run_folder), "--port", str(free_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        children, engine = f"/proc/{process.pid}/task/{process.pid}/children", ""
        while not engine:
            with open(children) as file:
                engine = file.read().strip()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        said = process.stderr.read().removeprefix(f"chat: opening {run_folder}\n")
        assert said in ("stopped\n", "") or said.endswith("Ctrl+C stops it\nstopped\n")  # we were slow: it had loaded
    wait_until(lambda: not os.path.exists(f"/proc/{engine}"), "the engine goes on", limit_s=10)


def test_terminal_chat_has_several_turns_and_speeds(run_folder):
    questions = "Say hello.\n\nThanks, bye!\n/exit\nnever asked\n"
    done = subprocess.run(
        [*CHAT, str(run_folder), "--cli", "--set", "chat.context=256"],
        input=questions, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith("> ") and "\n> " not in done.stdout and len(done.stdout) > 40  # none for a pipe
    stats = (
        r"^\[(\d+) tokens, first after [\d.]+ s, \d+ tokens/s(?:, cut: the context is full)?\]$"  # answers are drawn
    )
    first, second = re.findall(stats, done.stderr, re.MULTILINE)
    assert int(first) > 3 and int(second) > 3


def test_terminal_chat_names_bytes_that_are_no_utf8_and_goes_on(run_folder):
    """Bytes of a terminal in Latin-1, and answers for one: neither is a traceback."""
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [*CHAT, str(run_folder), "--cli", "--set", "chat.context=256"],
            input=b"caf\xe9\nSay hello.\n", capture_output=True, timeout=120, check=False,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )  # fmt: skip
        said = done.stderr.decode()
        assert done.returncode == 0 and "Traceback" not in said and said.count("tokens/s") == 1, said
        assert "warning: the text has half a character, U+DCE9 (the byte E9 in another encoding)" in said


def test_terminal_chat_ctrl_c_cuts_an_answer_and_ctrl_d_ends(run_folder, own_cache, tmp_path):
    ours, theirs = pty.openpty()
    command = [*CHAT, str(run_folder), "--cli"]
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True, "cwd": tmp_path}
    with subprocess.Popen(command, **terminal) as process:
        os.close(theirs)
        screen = read_until(ours, "", "> ")
        os.write(ours, LONG.encode() + b"\n")
        read_until(ours, "", f"{LONG}\r\n")  # the echo
        screen = read_until(ours, "", " the ")  # inside the answer
        process.send_signal(signal.SIGINT)
        screen = read_until(ours, screen, "\r\n> ")
        assert "tokens/s" not in screen  # it did not come to its end
        os.write(ours, b"/save chats.jsonl\n")
        said = read_until(ours, "", "nothing is saved, for no answer can be trained on: 1 cut")
        read_until(ours, said.rpartition("1 cut")[2], "> ")  # before it is asked again, a Ctrl+D may be lost
        os.write(ours, b"\x04")
        assert process.wait(timeout=20) == 0, screen
    os.close(ours)
    assert not (tmp_path / "chats.jsonl").exists()
    assert (own_cache / "chat-history").read_text() == f"{LONG}\n/save chats.jsonl\n"


def read_until(terminal, screen, text):
    """What the terminal shows until `text` is there."""
    while text not in screen:
        screen += os.read(terminal, 4096).decode(errors="replace")
    return screen


def test_chat_needs_no_torch():
    heavy = "{'torch', 'transformers', 'jinja2', 'matplotlib'}"
    code = f"import tunesmith.server.app, sys; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
