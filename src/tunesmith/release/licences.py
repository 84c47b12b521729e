"""What the licence of a base asks of a model that is made from it and published: a table, and what is refused.

Each row says what the licence's own text asks for. It is no legal advice: the text is what counts, and goes along.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase as fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import RecipeError
from tunesmith.recipe import PublishConfig
from tunesmith.weights.small_files import CARD, LICENCE_FILES, read_text

NOTICE = "NOTICE"
TEXTS = ("LICENSE", "LICENCE", "COPYING")
"""How the name of a licence's text begins."""
FRONT_MATTER = re.compile(r"---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Licence:
    """One licence, and what it asks of who passes a changed model on."""

    id: str
    """As the Hub has it."""
    title: str
    link: str
    other: bool = False
    """Whether the Hub has no id of its own for it: the metadata say `other`, and its name and link."""
    prefix: str = ""
    """What the name of the model must begin with."""
    built_with: str = ""
    """What the card must show."""
    notice: str = ""
    """A line that NOTICE must have."""
    text: bool = False
    """Whether its text must go along."""
    limits: str = ""
    """What its users may not do, where that is not what they expect."""


def _llama(number: str, title: str, prefix: str, built_with: str) -> Licence:
    """Section 1.b of the Llama community licences: name, "Built with", a copy, the notice, the use policy."""
    holder = "Copyright © Meta Platforms, Inc. All Rights Reserved."
    return Licence(
        id=f"llama{number}",
        title=f"{title} Community License",
        link=f"https://www.llama.com/llama{number.replace('.', '_')}/license/",
        prefix=prefix,
        built_with=built_with,
        notice=f"{title} is licensed under the {title} Community License, {holder}",
        text=True,
        limits="Use must follow Meta's Acceptable Use Policy; from 700 million monthly users on Meta is to be asked.",
    )


def _qwen(id: str, title: str, limits: str) -> Licence:
    return Licence(
        id=id,
        title=title,
        link="https://huggingface.co/Qwen",
        other=True,
        built_with="Built with Qwen",
        notice=f"Qwen is licensed under the {title}, Copyright (c) Alibaba Cloud. All Rights Reserved.",
        text=True,
        limits=limits,
    )


LICENCES = {licence.id: licence for licence in (
    Licence("apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0", text=True),
    Licence("mit", "MIT License", "https://opensource.org/license/mit", text=True),
    Licence("bsd-3-clause", "BSD 3-Clause License", "https://opensource.org/license/bsd-3-clause", text=True),
    Licence("cc0-1.0", "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    Licence("cc-by-4.0", "CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/"),
    Licence("cc-by-sa-4.0", "CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/",
            limits="What is made from it is passed on under the same licence."),
    Licence("cc-by-nc-4.0", "CC BY-NC 4.0", "https://creativecommons.org/licenses/by-nc/4.0/",
            limits="No commercial use."),
    Licence("gemma", "Gemma Terms of Use", "https://ai.google.dev/gemma/terms",
            text=True,
            notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
            limits="Use must follow https://ai.google.dev/gemma/prohibited_use_policy, and who "
            "passes the model on must say so too."),
    _llama("2", "Llama 2", "", ""),
    _llama("3", "Meta Llama 3", "Llama-3", "Built with Meta Llama 3"),
    _llama("3.1", "Llama 3.1", "Llama", "Built with Llama"),
    _llama("3.2", "Llama 3.2", "Llama", "Built with Llama"),
    _llama("3.3", "Llama 3.3", "Llama", "Built with Llama"),
    _llama("4", "Llama 4", "Llama", "Built with Llama"),
    _qwen("qwen-research", "Qwen RESEARCH LICENSE AGREEMENT", "Research and evaluation only: no commercial use."),
    _qwen("qwen", "Qwen LICENSE AGREEMENT", "From 100 million monthly users on Alibaba Cloud is to be asked."),
)}  # fmt: skip
"""The id of a licence -> what it asks."""

OURS = "apache-2.0"
"""The licence of tunesmith itself: of the bases under it few have its text beside them."""
LICENSORS = ("meta-llama/", "google/")
"""Whose own models are under what their cards say."""
PARENTS = {
    "meta-llama/(Meta-)?Llama-2": "llama2", r"meta-llama/(Meta-)?Llama-3\.1": "llama3.1",
    r"meta-llama/Llama-3\.2": "llama3.2", r"meta-llama/Llama-3\.3": "llama3.3",
    "meta-llama/(Meta-)?Llama-3-": "llama3", "meta-llama/Llama-4": "llama4",
    r"google/gemma-(2b|7b|1\.1|2-|3-|3n)": "gemma",
}  # fmt: skip
"""How ids of models begin -> their licence: what is made from them stays under it, whatever its card says."""


@dataclass(frozen=True)
class Terms:
    """The licence of one base, as its folder and the recipe have it, and the files that go along."""

    licence: Licence
    link: str
    files: Mapping[str, bytes]
    """Name in the repository -> content: the licence's text, notices, use policies."""

    def metadata(self) -> dict[str, str]:
        """What the card's metadata say of it."""
        if not self.licence.other:
            return {"license": self.licence.id}
        return {"license": "other", "license_name": self.licence.id, "license_link": self.link}

    def duties(self) -> Iterator[str]:
        """What the licence asks, and how it is done, one line each."""
        names = ", ".join(sorted(self.files))
        yield f"{self.licence.title} ({self.link})"
        if self.licence.prefix:
            yield f"the model's name begins with {self.licence.prefix}"
        if self.licence.built_with:
            yield f'the card shows "{self.licence.built_with}"'
        if names:
            yield f"these go along: {names}"
        yield "the card says that the model was changed from its base by fine-tuning"
        if self.licence.limits:
            yield f"for you to see to: {self.licence.limits}"


def terms_of(folder: Path, config: PublishConfig, base: str) -> Terms:
    """The terms of a base, by the card and licence files in its folder, and by publish.licence.

    Raises RecipeError for a licence that is not known, or not said, until the recipe names it; and where a text that
    must go along is not there.
    """
    said = metadata_of(folder)
    name, link = _named(said), said.get("license_link")
    known = LICENCES.get(name.lower())
    parent, of_parent = _of_parent(base, said, known)
    if known and of_parent and config.licence is None:
        what = f"{base} says that it is under {known.id}, and it was made from {parent}, which is under {of_parent}"
        raise RecipeError(what, fix=f"set publish.licence to {of_parent}; or, if you know better, to {known.id}")
    if known and of_parent and config.licence == of_parent:
        known, link = LICENCES[of_parent], None
    if known and config.licence not in (None, known.id):
        what = f"publish.licence is {config.licence}, and {base} is under {known.id}"
        raise RecipeError(what, fix="leave publish.licence out: it is for a base whose licence is not known")
    if not known and not config.licence:
        is_under = f"{base} is under a licence that tunesmith does not know: {name}" if name else (
            f"{base} says nothing of its licence")  # fmt: skip
        ids = ", ".join(LICENCES)
        fix = f"read its licence, and name it: publish.licence, one of {ids}, or another id; publish.licence_files"
        raise RecipeError(f"{is_under}, so what it asks of you cannot be seen to", fix=fix)
    licence = known or _asked(config.licence or name, link)
    files = {path.name: path.read_bytes() for path in _files(folder, config)}
    text = next((file for file in files if file.upper().startswith(TEXTS)), "")
    if licence.id == OURS and not text and (own := _own_text()):
        files["LICENSE"] = own
    elif licence.text and not text:
        what = f"{licence.title} asks that its text goes along, and {base} has no LICENSE file beside it"
        raise RecipeError(what, fix=f"fetch it ({link or licence.link}) and name it in publish.licence_files")
    if licence.notice and licence.notice.encode() not in files.get(NOTICE, b""):
        files[NOTICE] = f"{licence.notice}\n".encode() + files.get(NOTICE, b"")
    address = str(link or licence.link or text)
    if not address:
        what = f"{base} is under {licence.id}, of which neither an address nor a text is known"
        raise RecipeError(what, fix="name its text in publish.licence_files")
    return Terms(licence, address, files)


def _own_text() -> bytes | None:
    """The text of the licence that tunesmith itself is under, where it was installed with it."""
    try:
        distribution = metadata.distribution("tunesmith")
    except metadata.PackageNotFoundError:
        return None
    found = distribution.read_text("licenses/LICENSE") or distribution.read_text("LICENSE")
    return found.encode() if found else None


def _of_parent(base: str, said: Mapping[str, Any], known: Licence | None) -> tuple[str, str]:
    """The model that a base was made from, and its licence, where the base says another."""
    named = said.get("base_model") or ()
    if base.startswith(LICENSORS) or (known and known.id.startswith("llama")):
        return "", ""
    for parent in [named] if isinstance(named, str) else named:
        for pattern, licence in PARENTS.items():
            if known and licence != known.id and re.match(pattern, str(parent), re.IGNORECASE):
                return str(parent), licence
    return "", ""


def refuse_clash(files: Mapping[str, bytes], others: Collection[str]) -> None:
    """Raise RecipeError for a file of a licence that has the name of another one of the same repository.

    A licence's own file is none such: merge copies it from the base, and what the recipe names goes before it.
    """
    clash = sorted(files.keys() & {name for name in others if not any(fnmatch(name, each) for each in LICENCE_FILES)})
    if clash:
        what = f"the licence's {clash[0]} has the name of a file that is published with it"
        raise RecipeError(what, fix="name it otherwise in publish.licence_files, such as LICENSE or NOTICE")


def refuse_name(terms: Terms, name: str) -> None:
    """Raise RecipeError for a name of a model that its base's licence does not allow."""
    if not name.startswith(terms.licence.prefix):
        what = f"{terms.licence.title}: the name of the model must begin with {terms.licence.prefix}, and it is {name}"
        raise RecipeError(what, fix=f"name it, for example, {terms.licence.prefix}-{name}")


def metadata_of(folder: Path) -> dict[str, Any]:
    """The metadata at the head of a base's card; empty where there are none that can be read."""
    path = folder / CARD
    found = FRONT_MATTER.match(read_text(path)) if path.exists() else None
    try:
        said = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        said = None
    return said if isinstance(said, dict) else {}


def _named(said: Mapping[str, Any]) -> str:
    """The licence that a card's metadata name: one without an id of the Hub by its own name."""
    name = said.get("license")
    own = said.get("license_name")
    return str(own if name == "other" and own else name or "")


def _asked(name: str, link: Any) -> Licence:
    """The licence that the recipe names; one that is not in the table asks what its reader says that it asks."""
    return LICENCES.get(name.lower()) or Licence(name, name, str(link or ""), other=True)


def _files(folder: Path, config: PublishConfig) -> Sequence[Path]:
    """The licence files beside a base, and those that the recipe names: these go before."""
    own = {path.name: path for pattern in LICENCE_FILES for path in sorted(folder.glob(pattern)) if path.is_file()}
    named = [Path(file) for file in config.licence_files]
    if twice := [name for name, count in Counter(path.name for path in named).items() if count > 1]:
        what = f"publish.licence_files has two files of the name {twice[0]}, and one repository has place for one"
        raise RecipeError(what, fix="put what they say into one file, or name one of them otherwise")
    if lacking := next((path for path in named if not path.is_file()), None):
        raise RecipeError(f"publish.licence_files: there is no file {lacking}", fix="name files that are there")
    return list((own | {path.name: path for path in named}).values())
