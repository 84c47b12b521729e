"""The part of Go's text/template that a Modelfile of ours uses, interpreted: text, if, else if, end, range, variables.

Grammar: https://pkg.go.dev/text/template. Anything else is an error, so that a template cannot pass unread.
"""

import re

ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)


def execute(template, messages):
    """The text that Ollama sends: its values are System, the system prompts joined, and Messages."""
    parts = ACTION.split(template)
    tokens = [("text" if number % 2 == 0 else "do", part) for number, part in enumerate(parts)]
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    out = []
    rest = _run(tokens, {"System": system, "Messages": messages}, out, live=True)
    assert not rest, f"left over: {rest}"
    return "".join(out)


def _run(tokens, values, out, live):
    """Work off tokens up to the `else` or `end` that closes this block; returns the tokens from there on."""
    while tokens:
        (kind, text), tokens = tokens[0], tokens[1:]
        if kind == "text":
            if live:
                out.append(text)
        elif text == "end" or text.startswith("else"):
            return [(kind, text), *tokens]
        elif text.startswith("if "):
            tokens = _choose(text[3:], tokens, values, out, live)
        elif text == "range $i, $_ := .Messages":
            block = tokens
            for number, message in enumerate(values["Messages"]):
                inner = values | {"i": number, "Role": message["role"], "Content": message["content"]}
                tokens = _run(block, inner, out, live)
            assert tokens[0] == ("do", "end")
            tokens = tokens[1:]
        elif text == "$last := eq (len (slice $.Messages $i)) 1":
            values["last"] = len(values["Messages"][values["i"] :]) == 1
        elif text in (".Content", "$.System"):
            if live:
                out.append(values[text.lstrip("$.")])
        else:
            raise AssertionError(f"unknown action {text}")
    return tokens


def _choose(condition, tokens, values, out, live):
    holds = _true(condition, values)
    tokens = _run(tokens, values, out, live and holds)
    (_, text), tokens = tokens[0], tokens[1:]
    if text.startswith("else if "):
        return _choose(text[8:], tokens, values, out, live and not holds)
    assert text == "end", text
    return tokens


def _true(condition, values):
    if match := re.fullmatch(r"eq \.Role \"(\w+)\"", condition):
        return values["Role"] == match[1]
    known = {
        "$last": lambda: values["last"], "not $last": lambda: not values["last"],
        "not .System": lambda: not values["System"],
        "and $.System (eq $i 1)": lambda: values["System"] and values["i"] == 1,
        "and $.System $last": lambda: values["System"] and values["last"],
    }  # fmt: skip
    return known[condition]()
