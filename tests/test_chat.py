"""The chat in the terminal: what the model is given, turn by turn."""

import pytest

from tunesmith.errors import DataError, ResourceError
from tunesmith.inference.client import Answer
from tunesmith.recipe import ChatConfig
from tunesmith.server.app import _talk

CHAT = ChatConfig(system="Be brief.", temperature=0.5, top_p=0.8, context=300)
SYSTEM = {"role": "system", "content": "Be brief."}


TOO_LONG = ResourceError("the conversation is too long", fix="start a new one")


class Engine:
    """Answers with the number of the question, and keeps what it was asked."""

    def __init__(self, *fails, error=TOO_LONG):
        self.asked, self.settings, self.fails, self.error = [], [], fails, error

    def chat(self, messages, *, on_text, **settings):
        self.asked.append([dict(message) for message in messages])
        self.settings.append(settings)
        number = len(self.asked)
        if number in self.fails:
            raise self.error
        on_text(f"answer {number}")
        return Answer(f"answer {number}", True, 1, 2, 0.1, 3.0, 4.0)


def talk(monkeypatch, engine, *questions, chat=CHAT):
    typed = iter([*questions, "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    _talk(engine, "sailor", chat)
    assert next(typed, None) is None


def said(*texts):
    return [SYSTEM, *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts))]


def test_every_question_comes_with_the_system_prompt_and_what_was_said(monkeypatch):
    engine = Engine()
    talk(monkeypatch, engine, "one", "  ", "two", "three")
    assert engine.asked == [
        said("one"), said("one", "answer 1", "two"), said("one", "answer 1", "two", "answer 2", "three"),
    ]  # fmt: skip
    assert engine.settings == 3 * [{"max_tokens": 300, "temperature": 0.5, "top_p": 0.8}]


def test_after_an_error_a_new_conversation_starts(monkeypatch, capsys):
    engine = Engine(2)
    talk(monkeypatch, engine, "one", "two", "three")
    assert engine.asked[1:] == [said("one", "answer 1", "two"), said("three")]
    assert "too long; a new conversation starts" in capsys.readouterr().err


def test_after_a_text_that_is_none_the_conversation_goes_on(monkeypatch, capsys):
    engine = Engine(2, error=DataError("the text has half a character", fix="write it in UTF-8"))
    talk(monkeypatch, engine, "one", "tw\udcf6", "three")
    assert engine.asked[1:] == [said("one", "answer 1", "tw\udcf6"), said("one", "answer 1", "three")]
    assert "half a character; the conversation goes on without it" in capsys.readouterr().err


@pytest.mark.parametrize("system", [None, ""])
def test_without_a_system_prompt_there_is_no_empty_one(monkeypatch, system):
    engine = Engine()
    talk(monkeypatch, engine, "one", chat=ChatConfig(system=system))
    assert engine.asked == [[{"role": "user", "content": "one"}]]
