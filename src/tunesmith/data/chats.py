"""Chats of people: messages, each with its time, become conversations of turns."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from tunesmith.data.conversation import Turn
from tunesmith.data.speakers import Roles, role_of_person

WHATSAPP = "whatsapp"
"""Column of the rows that the reader of WhatsApp's export makes: the messages of one conversation."""
PAUSE_S = 12 * 3600  # an answer after a day's work or a night's sleep (8 h each) goes on, what comes later begins anew
JOINED = "messages of one speaker joined"
NO_WORDS = "messages without words (pictures, calls, files, deleted ones) left out"
NO_MESSAGE = "messages without sender, date or text left out"
SERVICE = "messages of the chat program left out"
FORWARDED = "forwarded messages left out"


class Message(NamedTuple):
    """What somebody wrote."""

    speaker: str
    text: str
    time_s: float
    place: str
    """Where it is: a line, or its id in the chat."""


def parted(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """Conversations: after a pause of more than PAUSE_S seconds the next one begins."""
    here: list[Message] = []
    for message in messages:
        if here and message.time_s - here[-1].time_s > PAUSE_S:
            yield here
            here = []
        here.append(message)
    if here:
        yield here


def spoken(messages: Iterable[tuple[str, str]], roles: Roles, changed: Counter[str]) -> list[Turn]:
    """The turns of (speaker, text): what one speaker writes in a row is one turn, a line for each message.

    Raises NoTurns for a speaker that the recipe does not map.
    """
    turns = []
    for speaker, said in groupby(messages, key=lambda message: message[0]):
        texts = [text for _, text in said]
        if len(texts) > 1:
            changed[JOINED] += len(texts) - 1
        turns.append(Turn(role_of_person(speaker, roles), "\n".join(texts)))
    return turns
