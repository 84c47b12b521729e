"""Who speaks: what data call the speakers, and the roles of the recipe's `data.roles`."""

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.data.conversation import Role
from tunesmith.data.meaning import NoTurns
from tunesmith.printable import visible

ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(
        ("gpt", "assistant", "chatgpt", "bing", "bard", "model", "function_call", "tool_call"), "assistant"
    ),
    **dict.fromkeys(("observation", "tool", "function", "ipython", "tool_response"), "tool"),
}
"""Who speaks, in any case -> the role."""
CALLING = ("function_call", "tool_call")
"""The speakers whose text is a tool call (ShareGPT's and ms-swift's form)."""

Roles = Mapping[str, Role]


def role_of(speaker: Any, roles: Roles) -> Role:
    """The role of a speaker: as the recipe says, else as data call it. Raises NoTurns for an unknown one."""
    name = speaker.strip() if isinstance(speaker, str) else None
    role = None if name is None else mapped(name, roles) or ROLES.get(name.casefold())
    if role is None:
        raise NoTurns(f"unknown role {_quoted(speaker)}{_said_how(name)}")
    return role


def role_of_person(name: str, roles: Roles) -> Role:
    """The role of somebody in a chat of people: nobody's name says it. Raises NoTurns where the recipe does not."""
    if role := mapped(name, roles):
        return role
    raise NoTurns(f"unknown speaker {_quoted(name)}{_said_how(name)}")


def mapped(name: str, roles: Roles) -> Role | None:
    """What the recipe says of a speaker: of this name, else of one that differs in case only."""
    if name in roles or not roles:
        return roles.get(name)
    return next((role for known, role in roles.items() if known.strip().casefold() == name.casefold()), None)


def _quoted(speaker: Any) -> str:
    return visible(json.dumps(speaker, default=str, ensure_ascii=False)[:40])


def _said_how(name: str | None) -> str:
    return ' (map it in the recipe, as in data.roles: {"...": user})' if name else ""
