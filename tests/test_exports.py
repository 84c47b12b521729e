"""Exports of chats that people have: ChatGPT, WhatsApp and Telegram. Every text is made up."""

import json

import pytest

from tunesmith.data import whatsapp
from tunesmith.data.chatgpt import HIDDEN, MARKS, NO_BRANCH, OTHER_FORM
from tunesmith.data.chats import FORWARDED, JOINED, NO_MESSAGE, NO_WORDS, SERVICE
from tunesmith.data.conversation import Conversation, Dropped, Turn
from tunesmith.data.formats import NO_MESSAGES
from tunesmith.data.meaning import MEDIA
from tunesmith.data.noted import Noted
from tunesmith.data.read import conversations
from tunesmith.errors import DataError
from tunesmith.recipe import DataConfig, Source

ROLES = {"Ann": "user", "Bob": "assistant"}


def read(path, holds, roles=None, noted=None):
    path.write_text(holds if isinstance(holds, str) else json.dumps(holds), encoding="utf-8")
    return list(conversations(Source(path=str(path)), roles or {}, noted))


def said(*turns):
    return tuple(Turn(role, text) for role, text in turns)


def message(role, *parts, kind="text", **beside):
    content = {"content_type": kind, "parts": list(parts)}
    return {"author": {"role": role}, "content": content, "recipient": "all", "metadata": {}} | beside


def tree(*messages):
    """A conversation of ChatGPT with these messages in its current branch, and one that was written anew."""
    nodes = {"root": {"id": "root", "message": None, "parent": None, "children": []}}
    for number, one in enumerate(messages):
        parent = f"m{number - 1}" if number else "root"
        nodes[f"m{number}"] = {"id": f"m{number}", "message": one, "parent": parent, "children": []}
    nodes["old"] = {"id": "old", "message": message("assistant", "First try"), "parent": "m0", "children": []}
    return {"title": "Tea", "mapping": nodes, "current_node": f"m{len(messages) - 1}", "conversation_id": "1"}


ASKED, ANSWERED = message("user", "Which tea?"), message("assistant", "Green tea.")


@pytest.mark.parametrize(
    ("messages", "expected", "changed"),
    [
        ((message("system", ""), ASKED, ANSWERED), said(("user", "Which tea?"), ("assistant", "Green tea.")), {}),
        (
            (message("system", "Be kind."), ASKED, ANSWERED),
            said(("system", "Be kind."), ("user", "Which tea?"), ("assistant", "Green tea.")),
            {},
        ),
        (
            (
                message("system", "You are", metadata={"is_visually_hidden_from_conversation": True}),
                message("user", "About me", kind="user_editable_context"),
                message("system", "x", weight=0.0),
                ASKED,
                message("assistant", "Green tea\ue200cite\ue202turn0search1\ue201.【3†source】"),
            ),
            said(("user", "Which tea?"), ("assistant", "Green tea.")),
            {HIDDEN: 3, MARKS: 1},
        ),
        (
            (
                message("user", {"content_type": "audio_transcription", "text": "Which tea?"}, kind="multimodal_text"),
                {
                    "author": {"role": "assistant"},
                    "content": {"content_type": "thoughts", "thoughts": [{"summary": "s", "content": "Green?"}]},
                },
                ANSWERED,
            ),
            (Turn("user", "Which tea?"), Turn("assistant", "Green tea.", reasoning="Green?")),
            {},
        ),
        (
            (
                ASKED,
                message("assistant", recipient="python") | {"content": {"content_type": "code", "text": "1 + 1"}},
                {
                    "author": {"role": "tool", "name": "python"},
                    "content": {"content_type": "execution_output", "text": "2"},
                },
                ANSWERED,
            ),
            (
                Turn("user", "Which tea?"),
                Turn("assistant", "", calls='[{"name": "python", "arguments": {"input": "1 + 1"}}]'),
                Turn("tool", "2"),
                Turn("assistant", "Green tea."),
            ),
            {},
        ),
        ((message("user", {"content_type": "image_asset_pointer"}), ANSWERED), MEDIA, {}),
        ((message("narrator", "x"),), 'unknown role "narrator"', {}),
    ],
)
def test_the_current_branch_of_chatgpt_is_read(tmp_path, messages, expected, changed):
    noted = Noted()
    (found,) = read(tmp_path / "conversations.json", [tree(*messages)], noted=noted)
    assert (found.turns if isinstance(found, Conversation) else found.reason) == expected
    assert dict(noted.changed) == changed and dict(noted.formats) == {"chatgpt": 1}


def test_a_tree_of_chatgpt_without_a_way_is_dropped(tmp_path):
    lost, circle = tree(ASKED), tree(ASKED, ANSWERED)
    lost["current_node"] = "gone"
    circle["mapping"]["m0"]["parent"] = "m1"
    found = read(tmp_path / "conversations.json", [lost, circle, tree(ASKED, ANSWERED)])
    assert [getattr(row, "reason", "") for row in found] == [NO_BRANCH, NO_BRANCH, ""]


ANDROID = """\
31/12/20, 21:00 - Messages and calls are end-to-end encrypted. Tap to learn more.
31/12/20, 21:00 - Ann: Are you up?
31/12/20, 21:01 - Ann: I made soup:
lentils,

and salt
31/12/20, 21:02 - Bob: I am. <This message was edited>
31/12/20, 21:03 - Bob: <Media omitted>
31/12/20, 21:04 - Bob: Coming
31/12/20, 21:05 - Ann changed the subject from "x: y" to "z"
1/1/21, 10:00 - Ann: Morning
1/1/21, 22:00 - Bob: Evening
2/1/21, 10:01 - Ann: Hello
2/1/21, 10:02 - Bob: This message was deleted
"""
IOS = """\
\ufeff[12/31/20, 9:00:01\u202fPM] Ann: \u200eMessages and calls are end-to-end encrypted.
[12/31/20, 9:00:02\u202fPM] Ann: Are you up?
[12/31/20, 9:01:00\u202fPM] Ann: I made soup:
lentils,

and salt
\u200e[12/31/20, 9:01:30\u202fPM] Bob: \u200eimage omitted
[12/31/20, 9:02:00\u202fPM] Bob: I am.
[12/31/20, 9:04:00\u202fPM] Bob: Coming
[1/1/21, 10:00:00\u202fAM] Ann: Morning
[1/1/21, 10:00:00\u202fPM] Bob: Evening
[1/2/21, 10:01:00\u202fAM] Ann: Hello
"""
CHAT = (
    said(("user", "Are you up?\nI made soup:\nlentils,\n\nand salt"), ("assistant", "I am.\nComing")),
    said(("user", "Morning"), ("assistant", "Evening")),
    said(("user", "Hello")),
)


@pytest.mark.parametrize(
    ("text", "lines", "left_out"),
    [(ANDROID, (2, 11, 13), {SERVICE: 2, NO_WORDS: 2}), (IOS, (2, 10, 12), {NO_WORDS: 2})],
)
def test_a_chat_of_whatsapp_is_parted_after_long_pauses(tmp_path, text, lines, left_out):
    """From 21:04 to 10:00 are 13 hours; from 10:00 to 22:00 are 12, which go on."""
    noted = Noted()
    found = read(tmp_path / "_chat.txt", text, ROLES, noted)
    assert [row.turns for row in found] == list(CHAT)
    assert [row.where for row in found] == [f"_chat.txt:{line}" for line in lines]
    assert dict(noted.changed) == {JOINED: 2, **left_out}


@pytest.mark.parametrize(
    "heads",
    [
        ("31.12.20, 22:15 - ", "01.01.21, 08:15 - "),
        ("[31.12.20, 22:15:03] ", "[01.01.21, 08:15:03] "),
        ("2020-12-31, 22:15 - ", "2021-01-01, 08:15 - "),
        ("31/12/2020 à 22:15 - ", "01/01/2021 à 08:15 - "),
        ("12/31/20, 10:15 PM - ", "1/1/21, 8:15 AM - "),
        ("31/12/2020, 10:15 p. m. - ", "1/1/2021, 8:15 a. m. - "),
        ("2/3/21, 22:15 - ", "3/3/21, 08:15 - "),  # day first: else a month lies between
    ],
)
def test_dates_of_whatsapp_in_many_languages(tmp_path, heads):
    """Ten hours lie between the two messages, in whatever way the telephone writes them."""
    (found,) = read(tmp_path / "chat.txt", f"{heads[0]}Ann: Q\n{heads[1]}Bob: A\n", ROLES)
    assert found.turns == said(("user", "Q"), ("assistant", "A"))


def test_a_text_that_is_no_chat_is_named(tmp_path):
    with pytest.raises(DataError, match=r"notes.txt is no export of a WhatsApp chat"):
        read(tmp_path / "notes.txt", "A note.\n31/12/20, 22:15 - Ann: Q\n")


@pytest.mark.parametrize(
    ("rest", "what"), [("x" * 5000, "line of .* starts in line 2"), ("more\n" * 2000, "message of .* starts in line 1")]
)
def test_an_endless_message_is_an_error(tmp_path, monkeypatch, rest, what):
    monkeypatch.setattr(whatsapp, "ROW_BYTES", 2000)
    with pytest.raises(DataError, match=what):
        read(tmp_path / "chat.txt", "31/12/20, 22:15 - Ann: Q\n" + rest, ROLES)


def test_a_speaker_whom_the_recipe_does_not_map_is_named(tmp_path):
    text = "31/12/20, 22:15 - Ann: Q\n31/12/20, 22:16 - bob: A\n"
    (found,) = read(tmp_path / "chat.txt", text, {"ANN": "user"})
    assert isinstance(found, Dropped) and found.reason.startswith('unknown speaker "bob" (map it in the recipe')
    (found,) = read(tmp_path / "chat.txt", text, ROLES)  # in any case
    assert found.turns == said(("user", "Q"), ("assistant", "A"))
    assert DataConfig(sources=({"path": "x"},), roles=ROLES).roles == ROLES


def wrote(number, speaker, text, day=1, hour=10, **beside):
    return {"id": number, "type": "message", "date": f"2021-01-{day:02}T{hour:02}:00:00", "from": speaker,
            "from_id": f"user{number}", "text": text} | beside  # fmt: skip


TELEGRAM = {
    "name": "Ann", "type": "personal_chat", "id": 1,
    "messages": [
        {"id": 1, "type": "service", "date": "2021-01-01T09:00:00", "actor": "Ann", "action": "phone_call", "text": ""},
        wrote(2, "Ann", "Are you up?"),
        wrote(3, "Ann", ["See ", {"type": "link", "text": "https://example.org"}, "."]),
        wrote(4, "Bob", "", photo="photos/1.jpg"),
        wrote(5, "Bob", "Not mine", forwarded_from="Carl"),
        wrote(6, "Bob", "I am."),
        wrote(7, "Ann", "Hello", day=2),
        wrote(8, "Bob", "Yes", day=2),
    ],
}  # fmt: skip
OF_TELEGRAM = [
    said(("user", "Are you up?\nSee https://example.org."), ("assistant", "I am.")),
    said(("user", "Hello"), ("assistant", "Yes")),
]


@pytest.mark.parametrize("is_account", [False, True])
def test_a_chat_or_an_account_of_telegram(tmp_path, is_account):
    whole = {"about": "x", "chats": {"about": "y", "list": [TELEGRAM, TELEGRAM]}} if is_account else TELEGRAM
    noted, chats = Noted(), 1 + is_account
    found = read(tmp_path / "result.json", whole, ROLES, noted)
    assert [row.turns for row in found] == OF_TELEGRAM * chats
    place = "result.json:1, chat 1, message 2" if is_account else "result.json:1, message 2"
    assert found[0].where == place
    assert dict(noted.changed) == dict.fromkeys((SERVICE, NO_WORDS, FORWARDED, JOINED), chats)
    assert noted.form == "telegram"


def test_chats_of_telegram_that_were_left_are_read(tmp_path):
    left = {"about": "z", "list": [TELEGRAM]}
    for whole in ({"left_chats": left}, {"chats": {"list": [TELEGRAM]}, "left_chats": left}):
        noted = Noted()
        found = read(tmp_path / "result.json", whole, ROLES, noted)
        assert [row.turns for row in found] == OF_TELEGRAM * len(whole)


@pytest.mark.parametrize("wrong", [{"date": "soon"}, {"text": [7]}, {"from": None, "from_id": None}])
def test_what_is_no_message_of_telegram_is_counted(tmp_path, wrong):
    broken = TELEGRAM | {"messages": [*TELEGRAM["messages"], wrote(9, "Ann", "x", day=3) | wrong, 7]}
    noted = Noted()
    assert [row.turns for row in read(tmp_path / "result.json", broken, ROLES, noted)] == OF_TELEGRAM
    assert noted.changed[NO_MESSAGE] == 2
    empty = {"chats": {"list": [{"name": "x", "messages": []}]}}
    assert read(tmp_path / "result.json", empty, ROLES) == [Dropped("result.json:1, chat 1", NO_MESSAGES)]


@pytest.mark.parametrize(
    "wrong",
    [{"content": 7}, {"content": {"parts": 7}}, {"author": "Ann"}, {"author": {"role": []}}, {"metadata": [1]}],
)
def test_another_form_of_chatgpt_is_dropped_by_reason(tmp_path, wrong):
    (found,) = read(tmp_path / "conversations.json", [tree(ASKED, ANSWERED | wrong)])
    assert found.reason in (OTHER_FORM, "unknown role []")
