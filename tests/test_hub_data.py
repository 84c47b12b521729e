"""A data set from the Hub, against a stand-in server over real HTTP: its commit, its rows, and each way it fails."""

import json
import os
import subprocess
import sys

import pytest
from forked import forked
from hub_server import HubServer

from tunesmith.data.read import conversations
from tunesmith.recipe import Source

FIRST, SECOND = "b" * 40, "c" * 40
TOKEN = "hf_secretsecretsecret"
NOWHERE = "http://127.0.0.1:1"
ROWS = {
    commit: [{"prompt": f"q {n}", "completion": f"{commit[0]} {n}"} for n in range(3)] for commit in (FIRST, SECOND)
}
WHOLE = {commit: [[f"o/rows row {n}", f"{commit[0]} {n - 1}"] for n in (1, 2, 3)] for commit in ROWS}

ASK = """
import json, sys
from tunesmith.data.hub import resolve_commit
from tunesmith.data.read import conversations
from tunesmith.errors import DataError
from tunesmith.recipe import Source
found = []
for settings in json.loads(sys.argv[1]):
    source = Source(**settings)
    try:
        commit = resolve_commit(source)
        assert "datasets" not in sys.modules or found, "the commit needs no `datasets`"
        found.append([commit, [[row.where, row.turns[1].text] for row in conversations(source)]])
    except DataError as error:
        found.append(str(error))
print(json.dumps(found))
"""


@pytest.fixture
def hub(tmp_path):
    with HubServer().running() as server:
        server.datasets["o/rows"] = {"main": FIRST}
        for commit, rows in ROWS.items():
            folder = tmp_path / commit
            folder.mkdir()
            (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
            (folder / "README.md").write_text("# Rows\n")
            server.datasets["o/rows"][commit] = folder
        yield server


def ask(home, url, *sources, **environment):
    """What each source gives, in a process of its own: the Hub's address is read once."""
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = json.dumps([{"path": "o/rows"} | source for source in sources])
    done = subprocess.run(
        [sys.executable, "-c", ASK, settings], env=kept | own | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout
    return json.loads(done.stdout)


def test_the_commit_is_asked_first_and_pins_the_rows(hub, tmp_path):
    assert ask(tmp_path / "hub", hub.url, {}) == [[FIRST, WHOLE[FIRST]]]
    first, *later = [path for path in hub.paths if "o/rows" in path]
    assert first == "/api/datasets/o/rows" and later and not any("/main" in path for path in later), (
        "a branch may have moved since"
    )
    hub.datasets["o/rows"]["main"] = SECOND
    pinned = {"revision": FIRST}
    assert ask(tmp_path / "hub", hub.url, {}, pinned) == [[SECOND, WHOLE[SECOND]], [FIRST, WHOLE[FIRST]]]


@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {}])
def test_what_was_fetched_is_there_without_a_network(hub, tmp_path, offline):
    home = tmp_path / "hub"
    ask(home, hub.url, {"revision": SECOND}, {})
    found = ask(home, NOWHERE, {}, {"revision": FIRST}, {"revision": SECOND}, {"revision": "d" * 40}, **offline)
    assert found[:3] == [[FIRST, WHOLE[FIRST]], [FIRST, WHOLE[FIRST]], [SECOND, WHOLE[SECOND]]]
    assert "the Hub cannot be reached" in found[3]


def test_without_a_network_the_local_ways_are_named(tmp_path):
    for offline in ({"HF_HUB_OFFLINE": "1"}, {}):
        (said,) = ask(tmp_path / "hub", NOWHERE, {}, **offline)
        assert "the Hub cannot be reached" in said and "name a local file (JSON, JSONL, Parquet, CSV, Arrow)" in said


def test_a_busy_hub_is_as_good_as_none(hub, tmp_path):
    ask(tmp_path / "hub", hub.url, {})
    hub.refusals["o/rows"] = (503, "", False)
    assert ask(tmp_path / "hub", hub.url, {}) == [[FIRST, WHOLE[FIRST]]]


@pytest.mark.parametrize(
    ("source", "refusal", "parts"),
    [
        ({"split": "test"}, None, ["has no split test", "data.sources[].split", "train"]),
        ({"revision": "old"}, None, ["has no revision old", "branch, tag or commit"]),
        ({"revision": "d" * 40}, None, [f"has no revision {'d' * 40}"]),
        ({}, (403, "GatedRepo", False), ["is gated", "https://huggingface.co/datasets/o/rows", "HF_TOKEN"]),
        ({}, (401, "GatedRepo", False), ["is gated", "HF_TOKEN"]),
        ({}, (401, "GatedRepo", True), ["is gated", "HF_TOKEN"]),  # as the Hub does: listed, its files refused
        ({}, (404, "RepoNotFound", False), ["nor a data set of that name on the Hub", "check the spelling"]),
        ({}, (401, "", False), ["does not give the data set o/rows (HTTP 401)", "HF_TOKEN"]),
        ({}, (403, "", False), ["does not give the data set o/rows (HTTP 403)", "HF_TOKEN"]),
        ({"path": "not an id"}, None, ["there is no file not an id", "check the spelling"]),
    ],
)
def test_each_way_to_fail_says_what_to_do(hub, tmp_path, source, refusal, parts):
    if refusal:
        hub.refusals["o/rows"] = refusal
    (said,) = ask(tmp_path / "hub", hub.url, source)
    assert isinstance(said, str) and "fix: " in said
    assert not [part for part in parts if part not in said], said


def test_a_config_a_part_of_a_split_and_a_stream(hub, tmp_path):
    folder, home = tmp_path / FIRST, tmp_path / "hub"
    (folder / "train.jsonl").rename(folder / "a.jsonl")
    (folder / "b.jsonl").write_text(json.dumps({"prompt": "q", "completion": "of b"}))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files: a.jsonl\n- config_name: other\n  data_files: b.jsonl\n---\n"
    )
    main, several, other, wrong, part, stream, no_part = ask(
        home, hub.url, {"config": "main"}, {}, {"config": "other"}, {"config": "x"},
        {"config": "main", "split": "train[1:]"},
        {"revision": SECOND, "streaming": True},
        {"revision": SECOND, "streaming": True, "split": "train[:1]"},
    )  # fmt: skip
    assert main == [FIRST, WHOLE[FIRST]] and other == [FIRST, [["o/rows row 1", "of b"]]]
    for said, what in ((several, "several configs"), (wrong, "no config x")):  # also when one of them is cached
        assert f"the data set o/rows has {what}" in said and "data.sources[].config: 'main', 'other'" in said
    assert [answer for _, answer in part[1]] == ["b 1", "b 2"]
    assert stream == [SECOND, WHOLE[SECOND]] and "a part of one cannot be streamed: use `limit`" in no_part
    assert list(home.glob(f"datasets/**/{FIRST}/*.arrow")) and not list(home.glob(f"datasets/**/{SECOND}/*.arrow"))
    assert ask(home, NOWHERE, {"config": "other"}, {"config": "main"}) == [other, main]


def read_without_datasets(path):
    """Print whether a file was read in a process that never imported `datasets`, though it has every stage."""
    rows = list(conversations(Source(path=path)))
    print(len(rows), "datasets" in sys.modules, "tunesmith.tokens.prepare" in sys.modules)


def test_a_local_file_needs_no_datasets(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "q", "completion": "a"}')
    with forked(tmp_path / "output", path, of=read_without_datasets) as child:
        assert child.wait() == 0, child.stderr
        assert child.stdout == "1 False True\n"
