"""Which format a row is of, decided by its columns, and which column holds what."""

from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.data.chatgpt import is_chatgpt
from tunesmith.data.chats import WHATSAPP
from tunesmith.data.meaning import says_something
from tunesmith.data.telegram import is_telegram
from tunesmith.errors import DataError
from tunesmith.recipe import Source

FORMATS = {
    "sharegpt": ("conversations",),
    "messages": ("messages",),
    "self-instruct": ("instruction", "instances"),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "question-answer": ("question", "answer"),
}
"""Format -> the columns it needs, in the order in which `auto` tries them."""
EXPORTS = {"chatgpt": is_chatgpt, "telegram": is_telegram, "whatsapp": lambda row: WHATSAPP in row}
"""Format of an export of chats -> whether a row is one; these are known by more than a column's name."""
ALSO = {
    "conversations": ("conversation",),
    "input": ("context",),
    "output": ("response", "answer"),
    "completion": ("response", "answer"),
    "question": ("query",),
    "answer": ("response",),
    "system": ("system_prompt", "system_message"),
    "tools": ("functions",),
    "reasoning": ("reasoning_content", "thinking"),
}
"""Column of a format -> what else published sets call it; it is looked for in this order, where the recipe has none."""
BESIDE = {
    "sharegpt": ("system", "tools"),
    "messages": ("system", "tools"),
    "self-instruct": ("system",),
    "alpaca": ("input", "history", "system", "tools", "reasoning"),
    "prompt-completion": ("system", "tools", "reasoning"),
    "question-answer": ("input", "history", "system", "tools", "reasoning"),
}
"""Format -> the columns that it uses where they are there."""

Row = Mapping[str, Any]
Names = Mapping[str, tuple[str, ...]]
"""Column of a format -> the columns of the source that may hold it."""


def column_names(source: Source) -> Names:
    """Where each column of the formats is looked for: where the recipe says, or under each of its usual names."""
    said = {name: column for name, column in source.columns.model_dump().items() if column}
    every = {*type(source.columns).model_fields, *(name for beside in BESIDE.values() for name in beside), "instances"}
    return {name: (said[name],) if name in said else (name, *ALSO.get(name, ())) for name in every}


def cell(row: Row, columns: tuple[str, ...]) -> Any:
    """What a row holds in one of these columns; None where it has nothing in any."""
    return None if row.keys().isdisjoint(columns) else row.get(_column(row, columns))


def _column(row: Row, columns: tuple[str, ...]) -> str:
    """The first of these columns that says something in a row; else the first that is not null, or the first."""
    for column in columns:
        if says_something(row.get(column)):
            return column
    return next((column for column in columns if row.get(column) is not None), columns[0])


def is_of(row: Row, form: str, names: Names) -> bool:
    """Whether a row is of a format, with something in each of the columns that this needs."""
    if form in EXPORTS:
        return EXPORTS[form](row)
    return form in FORMATS and all(cell(row, names[need]) is not None for need in FORMATS[form])


def format_of(row: Row, source: Source, names: Names) -> str:
    """The format of a row, or "" if it is of none that the source may have.

    Better one whose columns hold something than one whose are there, as tables pad columns with null; and better one
    with the columns of its own names.
    """
    if source.format in EXPORTS:
        return source.format if is_of(row, source.format, names) else ""
    if source.format != "auto":
        return source.format if _has(row, source.format, names) else ""
    own = {name: columns[:1] for name, columns in names.items()}
    found = [form for form in EXPORTS if is_of(row, form, names)]
    found += [form for called in (own, names) for form in FORMATS if is_of(row, form, called)]
    found += [form for form in FORMATS if _has(row, form, names)]
    return next(iter(found), "")


def _has(row: Row, form: str, names: Names) -> bool:
    return all(any(column in row for column in names[need]) for need in FORMATS[form])


def no_format(row: Row, source: Source, names: Names, where: str) -> DataError:
    """The error for a source whose rows are of no format, with the columns there are and those it needs."""
    forms = FORMATS if source.format == "auto" else {source.format: FORMATS.get(source.format, ())}
    known = "; ".join(f"{form}: {_in_words(needs, names)}" for form, needs in forms.items())
    fix = "name its columns in the recipe, such as data.sources[].columns: {prompt: ask, completion: reply}"
    lists = [key for key, cell in row.items() if isinstance(cell, list) and cell and isinstance(cell[0], dict)]
    if found := [f'"{key}"' for key in lists if format_of(row[key][0], source, names)]:
        fix = f"the rows are in the list {' or '.join(found)}: write one alone to a file, and name it in the recipe"
    what = f"{source.path} has the columns {', '.join(map(str, row)) or '(none)'}. A conversation needs {known}"
    return DataError(what, fix=fix, where=where)


def _in_words(needs: tuple[str, ...], names: Names) -> str:
    return " and ".join("/".join(names[need]) for need in needs)


def missing_column(row: Row, form: str, names: Names) -> str | None:
    """The first column that a format needs and that is not there, or holds nothing."""
    return next((names[need][0] for need in FORMATS[form] if cell(row, names[need]) is None), None)


def half_there(row: Row, form: str, names: Names) -> str | None:
    """What is missing in a row that has some of a format's columns, as the reason to drop it."""
    there = any(cell(row, names[need]) is not None for need in FORMATS[form])
    return f"nothing in column {missing_column(row, form, names)}" if there else None


def unused_columns(row: Row, form: str, names: Names) -> Iterator[str]:
    """The columns of a row that say something and are not read in this format."""
    if form in EXPORTS:
        return
    left = row.keys() - {names[FORMATS[form][0]][0]}
    if left:
        left -= {_column(row, names[name]) for name in (*FORMATS[form], *BESIDE[form])}
        yield from (str(column) for column in row if column in left and says_something(row[column]))
