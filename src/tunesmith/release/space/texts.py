"""The texts of a Space: its Dockerfile, its README, and what git and Docker are told. Nothing is looked up here."""

import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from tunesmith import __version__
from tunesmith.errors import ResourceError
from tunesmith.release.space.fetch import HUB
from tunesmith.release.space.wheel import FILE as WHEEL

PORT, UID, HOME = 7860, 1000, "/home/user"
APP, VENV = f"{HOME}/app", f"{HOME}/venv"
IMAGES = {11: "3.11.14", 12: "3.12.12", 13: "3.13.9", 14: "3.14.0"}
"""Minor version of Python -> tag of Docker's official image: that of the Python which runs here, as the pinned
versions are those that it has."""
SHORT = 60  # letters of short_description, as the Hub shows it
ATTRIBUTES = "*.gguf filter=lfs diff=lfs merge=lfs -text\n*.whl filter=lfs diff=lfs merge=lfs -text\n"
IGNORED = ".git\n.gitattributes\nREADME.md\nrecord.json\n"
CONFIG = "https://huggingface.co/docs/hub/spaces-config-reference"


@dataclass(frozen=True)
class Model:
    """The GGUF file that a Space serves, and what is known of it."""

    name: str
    file: str
    sha256: str
    file_bytes: int
    published: str = ""
    """Path on the Hub, USER/NAME/resolve/COMMIT/FILE; empty: the file is in the Space itself."""
    base: str = ""
    licence: Mapping[str, str] = field(default_factory=dict)
    """What the Hub's settings say of it, such as {"license": "apache-2.0"}."""
    duties: Sequence[str] = ()
    """Sentences that the licence of the base asks for."""
    private: bool = False
    """Whether the published file is to be fetched with a token."""
    proofs: Sequence[str] = ()
    unproved: Sequence[str] = ()

    @property
    def repository(self) -> str:
        """USER/NAME of the published file; empty where it is in the Space."""
        return "/".join(self.published.split("/")[:2]) if self.published else ""


def page_of(to: str) -> str:
    """Where the Hub shows the Space."""
    return f"{HUB}/spaces/{to}"


def address_of(to: str) -> str:
    """Where the Space's chat itself answers."""
    return f"https://{re.sub('[^a-z0-9]+', '-', to.lower())}.hf.space"


def image() -> str:
    """Docker's image of the Python that runs here. Raises ResourceError for a Python that there is no tag for."""
    if sys.version_info[1] not in IMAGES:
        known = ", ".join(f"3.{minor}" for minor in IMAGES)
        what = f"a Space is made with the Python that runs here, 3.{sys.version_info[1]}, and {known} are known"
        raise ResourceError(what, fix="run tunesmith with one of these")
    return f"python:{IMAGES[sys.version_info[1]]}-slim-bookworm"


def dockerfile(model: Model) -> str:
    """Steps that compile nothing and need no root once the image is made."""
    if model.published:
        weights = [
            "# The model, pinned by commit and digest; a private repository needs the Space's secret HF_TOKEN.",
            f"RUN --mount=type=secret,id=HF_TOKEN,mode=0444,required=false python {_fetch(model)}",
        ]
    else:
        weights = [f"COPY --chown={UID}:{UID} {model.file} ./"]
    start = ["tunesmith", "chat", model.file, "--host", "0.0.0.0", "--port", str(PORT), "--public"]
    start += ["--allow-origin", HUB]  # whose page shows the chat in a frame
    health = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{PORT}/health', timeout=5)"
    lines = [
        f"# A chat on two CPUs, made by tunesmith {__version__}. Nothing is compiled; it runs without root.",
        f"FROM {image()}",
        "",
        "# libgomp1: threads of llama.cpp",
        "RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \\",
        f"    && useradd --create-home --uid {UID} user && install -d -o {UID} -g {UID} {APP}",
        f"USER {UID}",
        f"ENV HOME={HOME} PATH={VENV}/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1",
        f"WORKDIR {APP}",
        "",
        f"COPY --chown={UID}:{UID} requirements.txt {WHEEL} ./",
        f"RUN python -m venv {VENV} && pip install --only-binary :all: -r requirements.txt",
        *weights,
        "",
        f"EXPOSE {PORT}",
        f"HEALTHCHECK --start-period=120s CMD {json.dumps(['python', '-c', health])}",
        f"CMD {json.dumps(start)}",
        "",
    ]
    return "\n".join(lines)


def requirements(pinned: Sequence[str]) -> str:
    """For pip: exact versions, then the wheel beside."""
    return "\n".join(["# What a chat needs, as it was installed where this was made.", *pinned, f"./{WHEEL}", ""])


def readme(model: Model, tried: Mapping[str, Any] | None, address: str = "") -> str:
    """The page of the Space, with the settings that the Hub reads at its top."""
    front: dict[str, Any] = {
        "title": model.name, "emoji": "\N{SPEECH BALLOON}", "colorFrom": "gray", "colorTo": "blue", "sdk": "docker",
        "app_port": PORT, "short_description": f"Chat with {model.name} on two CPUs"[:SHORT], "pinned": False,
    }  # fmt: skip
    front |= model.licence
    front |= {"models": [model.repository]} if model.repository else {}
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{head}---\n",
        f"# {model.name}\n",
        _about(model),
        _speed(tried),
        _proofs(model),
        _use(model, address),
    ]
    return "\n".join(part for part in parts if part)


def _about(model: Model) -> str:
    place = f"[{model.repository}](https://huggingface.co/{model.repository})" if model.repository else "this Space"
    rows = [
        ("file", f"`{model.file}`, {model.file_bytes / 1e6:,.0f} MB, from {place}"),
        ("sha256", f"`{model.sha256}`"),
        *([("base", f"`{model.base}`")] if model.base else []),
        ("made by", f"tunesmith {__version__}; served by llama.cpp, without a GPU"),
    ]
    return _table(("", ""), rows) + "".join(f"\n{duty}\n" for duty in model.duties)


def _speed(tried: Mapping[str, Any] | None) -> str:
    if tried is None:
        return "## Speed\n\nNot measured: `tunesmith space ... --try` measures it, and writes it here.\n"
    rows = [
        ("time to first token", f"{tried['first_token_s']:.2f} s", _between(tried["spread"]["first_token_s"], ".2f")),
        ("tokens per second", f"{tried['tokens_per_s']:.1f}", _between(tried["spread"]["tokens_per_s"], ".1f")),
    ]
    memory = f", {tried['peak_memory_bytes'] / 1e6:,.0f} MB of memory at most" if tried["peak_memory_bytes"] else ""
    return (
        "## Speed\n\n"
        + _table(("", f"median of {tried['prompts']} prompts", "middle half"), rows)
        + f"\nMeasured on {tried['measured_at'][:10]} over HTTP, with {tried['threads']} threads on "
        f"{tried['processor']}{memory}. The Dockerfile's steps were done there in a folder, without Docker: "
        "the Hub's machines are other ones.\n"
    )


def _between(quartiles: Sequence[float], form: str) -> str:
    return f"{quartiles[0]:{form}} to {quartiles[1]:{form}}"


def _proofs(model: Model) -> str:
    if not model.proofs and not model.unproved:
        return "## Proofs\n\nThis file came without a run's records, so nothing is proved of it.\n"
    return "## Proofs\n\n" + "".join(f"- {line}\n" for line in [*model.proofs, *model.unproved])


def _use(model: Model, address: str) -> str:
    tag = re.sub("[^a-z0-9]+", "-", model.name.lower()).strip("-") or "chat"
    url = address or f"http://127.0.0.1:{PORT}"
    ask = json.dumps({"messages": [{"role": "user", "content": "Hello"}]})
    fetch = f"venv/bin/python {_fetch(model)}\n" if model.published else ""
    return f"""## Use it from a program, or elsewhere

```sh
curl {url}/v1/chat/completions -H "Content-Type: application/json" -d '{ask}'
```

With Docker:

```sh
docker build -t {tag} . && docker run -p {PORT}:{PORT} {tag}
```

Without it, with Python {image().split(":")[1].rsplit(".", 1)[0]} on Linux:

```sh
python -m venv venv && venv/bin/pip install --only-binary :all: -r requirements.txt
{fetch}venv/bin/tunesmith chat {model.file}
```

Anybody can use a public Space: what is typed there is bounded in length and rate, and nobody has to log in.
"""


def _fetch(model: Model) -> str:
    """What Python is told to fetch the published file."""
    return f"-m tunesmith.release.space.fetch {model.published} {model.sha256} {model.file}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summed_up(answers: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians and quartiles of the speeds of answers."""
    found: dict[str, Any] = {"prompts": len(answers), "spread": {}}
    for name in ("first_token_s", "tokens_per_s"):
        values = [answer[name] for answer in answers if answer.get(name)]
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        found[name], found["spread"][name] = round(middle, 3), [round(low, 3), round(high, 3)]
    return found
