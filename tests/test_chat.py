"""The chat in the terminal: what the model is given, turn by turn, and what each command does."""

import json
import stat

import pytest

from tunesmith.data.read import conversations
from tunesmith.errors import DataError, ResourceError
from tunesmith.inference.client import Answer
from tunesmith.recipe import Source
from tunesmith.server import terminal
from tunesmith.server.app import sampling_text
from tunesmith.server.terminal import Talk

SYSTEM = {"role": "system", "content": "Be brief."}
TOO_LONG = ResourceError("the conversation is too long", fix="start a new one")


class Engine:
    """Answers with the number of the question, or what it is told to; keeps what it was asked."""

    def __init__(self, *fails, error=TOO_LONG, pieces=None, cut=()):
        self.asked, self.settings, self.fails, self.error = [], [], fails, error
        self.pieces, self.cut = pieces or {}, cut

    def chat(self, messages, *, on_text, **settings):
        self.asked.append([dict(message) for message in messages])
        self.settings.append(settings)
        number = len(self.asked)
        if number in self.fails:
            raise self.error
        pieces = self.pieces.get(number, ["answer", f" {number}"])
        for piece in pieces:
            if piece is KeyboardInterrupt:
                raise piece
            on_text(piece)
        return Answer("".join(pieces), number not in self.cut, 1, 2, 0.1, 3.0, 4.0)


def talk(monkeypatch, engine, *typed, system="Be brief.", own=None):
    """Type lines, the last of which ends the chat; all of them must have been read."""
    lines = iter([*typed, "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    Talk(engine, system=system, own_system=own, context=300).go_on()
    assert next(lines, None) is None


def said(*texts, system=SYSTEM):
    return [system, *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts))]


def test_every_question_comes_with_the_system_prompt_and_what_was_said(monkeypatch):
    engine = Engine()
    talk(monkeypatch, engine, "one", "  ", "two", "three")
    assert engine.asked == [
        said("one"), said("one", "answer 1", "two"), said("one", "answer 1", "two", "answer 2", "three"),
    ]  # fmt: skip
    assert engine.settings == 3 * [{"max_tokens": 300, "temperature": None}]  # the server's own sampling


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
    talk(monkeypatch, engine, "one", system=system)
    assert engine.asked == [[{"role": "user", "content": "one"}]]


def test_the_system_prompt_is_shown_and_replaced_and_a_conversation_starts_anew(monkeypatch, capsys):
    engine = Engine()
    talk(monkeypatch, engine, "/system", "one", "/system  Rhyme. ", "two", "/system Rhyme.", "three", "/clear", "four")
    rhyme = {"role": "system", "content": "Rhyme."}
    assert engine.asked == [
        said("one"), said("two", system=rhyme), said("two", "answer 2", "three", system=rhyme),
        said("four", system=rhyme),
    ]  # fmt: skip
    said_there = capsys.readouterr().err
    assert said_there.count("a new conversation starts; /save makes a row of each") == 1
    assert "system prompt: Be brief.\n" in said_there and "system prompt: Rhyme.\n" in said_there
    talk(monkeypatch, engine, "/system", system=None, own="You are SmolLM.")
    assert "system prompt, of the file's template: You are SmolLM.\n" in capsys.readouterr().err


def test_an_unknown_command_is_answered_with_the_list_and_a_slash_can_be_sent(monkeypatch, capsys):
    engine = Engine()
    talk(monkeypatch, engine, "/etc/passwd is what?", "//etc/passwd is what?", '"""one', "", '/clear two"""')
    assert engine.asked == [
        said("/etc/passwd is what?"), said("/etc/passwd is what?", "answer 1", "one\n\n/clear two"),
    ]  # fmt: skip
    lines = capsys.readouterr().err
    assert "there is no command /etc/passwd" in lines and all(command in lines for command in terminal.COMMANDS)


def test_a_saved_conversation_is_a_row_that_can_be_trained_on(monkeypatch, tmp_path, capsys):
    file = tmp_path / "my chats.jsonl"
    talk(monkeypatch, Engine(), "/save x", "caf\u00e9", f"/save {file}", f"/save '{tmp_path}'", "/save", "/save a\0b")
    told = capsys.readouterr().err
    assert f"saved to {file}" in told.replace("\n", "") or f"saved to {file}" in told
    assert "nothing was said yet" in told and "it is no file" in told and "/save needs the name of a file" in told
    assert json.loads(file.read_text()) == {"messages": said("caf\u00e9", "answer 1")}
    (row,) = conversations(Source(path=str(file)))
    assert [(turn.role, turn.text) for turn in row.turns][1:] == [("user", "caf\u00e9"), ("assistant", "answer 1")]


def rows(file):
    return [json.loads(line)["messages"] for line in file.read_text().splitlines()]


def test_only_answers_that_are_whole_and_can_be_trained_on_are_saved(monkeypatch, tmp_path, capsys):
    """Ctrl+C, the context, and what prepare drops; the model goes on with what is on the screen."""
    file, alone = tmp_path / "chats.jsonl", tmp_path / "cut.jsonl"
    pieces = {1: ["half", KeyboardInterrupt], 3: ["a\x1b", "[2J\x9bb\r", "\n"], 4: ["caf\ufffd"], 5: ["  "]}
    engine = Engine(pieces=pieces, cut=(2,))
    talk(monkeypatch, engine, "one", f"/save {alone}", "two", "three", "four", "five", "si\u2028x", f"/save {file}")
    assert engine.asked[1] == said("one", "half", "two") and engine.asked[2][-2]["content"] == "answer 2"
    shown, told = capsys.readouterr()
    assert "a\ufffd[2J\ufffdb\n" in shown and not {"\x1b", "\x9b", "\r"} & set(shown)
    assert not alone.exists() and "nothing is saved, for no answer can be trained on: 1 cut\n" in told
    assert rows(file) == [said("si\u2028x", "answer 6")]
    wanted = "2 cut, 1 control characters, 1 text with replacement characters (U+FFFD), 1 an empty turn\n"
    assert f"5 of 6 answers left out with their questions: {wanted}" in told


def test_each_conversation_is_a_row_with_its_own_system_prompt(monkeypatch, tmp_path, capsys):
    file = tmp_path / "chats.jsonl"
    typed = ["none", "/clear", "one", "/system Rhyme.", "/system Sing.", "two", "three", "four", f"/save {file}"]
    talk(monkeypatch, Engine(4), *typed)  # the context is full at "three"
    sing = {"role": "system", "content": "Sing."}
    assert rows(file) == [
        said("one", "answer 2"), said("two", "answer 3", system=sing), said("four", "answer 5", system=sing)
    ]  # fmt: skip
    assert f"saved to {file}, a row for each of 3 conversations\n" in capsys.readouterr().err.replace("\r", "")
    assert [row.turns[0].text for row in conversations(Source(path=str(file)))] == ["Be brief.", "Sing.", "Sing."]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (None, b'{"mine": 1}'),
        ("", b'{"mine": 1}'),
        ("a", b'{"mine": 1}\n{"messages": '),
        ("r", b'{"messages": '),
    ],
)
def test_what_stands_at_the_name_of_a_saved_conversation_is_the_users(monkeypatch, tmp_path, answer, wanted):
    """Without a person to ask (a pipe) it stays; with one it is added to, or replaced where the answer says so."""
    (file := tmp_path / "mine.jsonl").write_bytes(b'{"mine": 1}')
    monkeypatch.setattr(terminal.sys.stdin, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr(terminal, "_history", terminal.contextlib.nullcontext)
    monkeypatch.setattr(terminal, "_remember", lambda text: None)
    talk(monkeypatch, Engine(), "one", f"/save {file}", *([] if answer is None else [answer]))
    left = file.read_bytes()
    assert left.startswith(wanted) and (len(left) > len(wanted)) == (answer in ("a", "r"))


def test_the_history_is_the_users_alone(own_cache, monkeypatch):
    monkeypatch.setattr(terminal.sys.stdin, "isatty", lambda: True, raising=False)
    own_cache.mkdir(parents=True)
    (own_cache / "chat-history").write_text("earlier\n")
    (own_cache / "chat-history").chmod(0o644)
    talk(monkeypatch, Engine(), "one")
    assert (own_cache / "chat-history").read_text() == "earlier\none\n/exit\n"
    assert stat.S_IMODE((own_cache / "chat-history").stat().st_mode) == 0o600
    monkeypatch.setattr(terminal, "readline", None)  # a Python without it
    talk(monkeypatch, engine := Engine(), "two")
    assert engine.asked == [said("two")]


@pytest.mark.parametrize("person", [True, False])
def test_ctrl_c_takes_back_what_is_not_answered_and_ends_a_chat_without_a_person(
    monkeypatch, own_cache, capsys, person
):
    def typed(lines):
        for line in lines:
            if line is None:
                raise KeyboardInterrupt
            return line

    engine, lines = Engine(2, error=KeyboardInterrupt()), iter(["one", None, "two", "three", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: typed(lines))
    monkeypatch.setattr(terminal.sys.stdin, "isatty", lambda: person, raising=False)
    Talk(engine, system="Be brief.", own_system=None, context=300).go_on()
    told = capsys.readouterr().err
    assert engine.asked[1:] == ([said("one", "answer 1", "two"), said("one", "answer 1", "three")] if person else [])
    assert told.count("Ctrl+D or /exit ends the chat") == person


def test_only_sampling_that_changes_something_is_said():
    assert sampling_text({"temperature": 0.2, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "seed": 7}) == (
        "temperature 0.2, top_p 0.9"
    )
    assert sampling_text({"temperature": 0.0, "top_p": 1.0, "top_k": 40, "repeat_penalty": 1.1}) == (
        "temperature 0, top_k 40, repeat_penalty 1.1"
    )
