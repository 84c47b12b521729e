"""Fixtures for every test: two base models, and a working folder of the test's own."""

import signal

import pytest

LONGEST = (
    "docs",
    "notebook",
    "reference",
    "resume",
    "chat_page",
    "hangup",
    "hub",
    "training",
    "hub_data",
    "cli",
    "export",
)


def pytest_collection_modifyitems(items):
    """The longest files first: two processes that share the files (make test) then end together."""
    rank = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_configure():
    """A shell starts what goes on in the background with SIGINT ignored, and nohup with SIGHUP: tests send both."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory, monkeypatch):
    """Runs are made below the working folder: tests get an empty one. Nor do they use the user's Hub token."""
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a random Llama of two layers with a chat template (tests/tiny.py)."""
    from tiny import save_base  # here: the process that hands out the files would need 5 s more to start

    return save_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def builtin_base():
    """The real built-in base, fetched once into the user's cache."""
    from tunesmith.gguf.read import convert
    from tunesmith.weights.locate import locate_base

    return locate_base("builtin:smollm2-135m-instruct", convert)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache of the test's own, for what is fetched or unpacked."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def hard_texts():
    """Where tokenizers differ: spaces before digits, superscripts, scripts, contractions, special tokens."""
    return (
        "a    12   345  x", "mc² and x³, ½ of ١٢٣", "日本語のテキスト、中文 한국어", "🙂👩\u200d👩\u200d👧 🇫🇷",
        "I'm sure they'll say we've, DON'T they'D", "line\n\n\n  indented\r\n\ttab \n", "  leading, trailing  ",
        "<|im_start|>user\nhi<|im_end|>\n", "1234567890 3.14159e-10", "naïve café Ünïcödé e\u0301",
        "def f(x):\n    return x[0]  # 'q'", "a\u00a0b \u2003 c\u200bd",
    )  # fmt: skip
