"""publish: what goes up is what the run made, nothing that is not proved does, and a cut, a refusal or a repository
that has moved on leaves both sides whole. The real client of the Hub, against a stand-in over real HTTP.
"""

import datetime
import email.utils
import hashlib
import json
import shlex
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from forked import completed
from hub_store import TOKEN, stand_in
from huggingface_hub import constants
from small_project import write_project
from study_runs import change
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.api import publish
from tunesmith.errors import ProofError, PublishError, RecipeError, ResumeError
from tunesmith.inference.engine import Engine
from tunesmith.inventory import standing_of
from tunesmith.pipeline import run_stages
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.release import hub_client, upload
from tunesmith.release import publish as publish_module
from tunesmith.release.card import draw_losses
from tunesmith.release.published import published
from tunesmith.runs import Run

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to its client
BASE_COMMIT = "c" * 40
TO = "publish.to=me/small"
REPOSITORIES = ("me/small", "me/small-lora", "me/small-GGUF")


@pytest.fixture(scope="module")
def made(tiny_base, tmp_path_factory):
    """The folder of a finished run on the tiny base, which says that it is on the Hub, and under Apache-2.0."""
    folder = tmp_path_factory.mktemp("made")
    base = shutil.copytree(tiny_base, folder / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (base / "LICENSE").write_text("the base's own")  # which merge copies
    path = write_project(folder, base, publish=f"{{base_on_hub: org/tiny@{BASE_COMMIT}}}")
    assert run_stages(read_recipe(path), Run(folder / "run")).done
    return folder / "run"


@pytest.fixture(scope="module")
def plot(made):
    return draw_losses(Run(made))


@pytest.fixture
def run(made, tmp_path, plot, monkeypatch):
    monkeypatch.setattr(publish_module, "draw_losses", lambda _: plot)  # 0.2 s each time
    return Run(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in(monkeypatch) as store:
        yield store


def sent(run, *changes, **options):
    return publish(run.path, [TO, *changes], send=True, **options)


def downloaded(id, folder):
    return Path(huggingface_hub.snapshot_download(id, local_dir=folder, token=TOKEN, endpoint=constants.ENDPOINT))


def test_a_dry_run_says_all_and_sends_nothing(run, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # no network, and no token
    said = publish(run.path, [TO], cards=tmp_path / "cards")
    for id in REPOSITORIES:
        assert f"{id} (private): " in said
    for name in ("model.safetensors", "adapter_model.safetensors", "small-Q8_0.gguf", "README.md"):
        assert f"  {name}\n" in said
    assert f"{read_record(run.model).outputs['model.safetensors']['bytes']:,}" in said
    assert "Apache License 2.0" in said and "proofs: all hold" in said
    assert said.endswith(f"publish {run.path} --set {TO} --yes") and not run.published.exists()
    assert (tmp_path / "cards" / "small-GGUF" / "README.md").read_text().startswith("---\nbase_model: me/small\n")
    assert "(public)" in publish(run.path, [TO, "publish.public=true"])
    only = publish(run.path, [TO, "publish.parts=[gguf]"])
    assert "me/small-GGUF" in only and "me/small (" not in only


def test_the_card_of_a_fork_says_what_it_began_with(run, tmp_path):
    ancestor = {"run": "/elsewhere/first-try", "step": 40, "held_out_loss": 2.1, "held_out_loss_here": 2.05}
    change(run.adapter, lambda record: {"counts": record["counts"] | {"ancestor": ancestor}})
    publish(run.path, [TO], cards=tmp_path / "cards")
    for card in tmp_path.glob("cards/*/README.md"):
        said = "It began with the adapter of first-try after step 40, from another run (held-out loss here 2.0500)"
        assert said in card.read_text() and "/elsewhere" not in card.read_text()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_what_is_published_is_what_the_run_made_and_loads(run, hub, tmp_path, capsys):
    from peft import PeftModel

    said = sent(run)
    assert all(f"published: {hub.url}/{id} (private)" in said for id in REPOSITORIES)
    assert hub.tokens == {f"Bearer {TOKEN}", None} and all(repo.private for repo in hub.repos.values())
    folders = {id: downloaded(id, tmp_path / id) for id in REPOSITORIES}
    for id, stage in zip(REPOSITORIES, (run.model, run.adapter, run.gguf), strict=True):
        for name, output in read_record(stage).outputs.items():
            if name != "adapter_config.json":
                folder = folders["me/small-lora" if name == "small-lora-F16.gguf" else id]
                assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == output["sha256"]
        for text in folders[id].glob("*.[jm]*"):
            assert str(run.path.parent) not in text.read_text() and TOKEN not in text.read_text()
    model = AutoModelForCausalLM.from_pretrained(folders["me/small"])
    ids = AutoTokenizer.from_pretrained(folders["me/small"])("What is a step?", return_tensors="pt")
    base = AutoModelForCausalLM.from_pretrained(read_recipe(run.recipe).base)
    adapted = PeftModel.from_pretrained(base, folders["me/small-lora"])
    assert (model(**ids).logits - adapted(**ids).logits).abs().max() < 1e-3
    assert all((folders[id] / "LICENSE").read_text() == "the base's own" for id in REPOSITORIES)
    settings = json.loads((folders["me/small-lora"] / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/tiny", BASE_COMMIT)
    with Engine(folders["me/small-GGUF"] / "small-Q8_0.gguf", threads=1, context=64) as engine:
        assert engine.tokenize("A text")
    everything = said + capsys.readouterr().err + run.published.read_text()
    assert TOKEN not in everything
    assert standing_of(run).says == f"finished, published as {' and '.join(REPOSITORIES)}"

    before = len(hub.log)
    assert "already there: " in sent(run) and not [path for _, path in hub.log[before:] if "commit" in path]


def test_a_cut_upload_goes_on_and_sends_nothing_twice(run, hub):
    hub.cut_after = 5000
    with pytest.raises(
        PublishError, match=r"sending .* to me/small: the Hub cannot be reached, or was cut off"
    ) as said:
        sent(run)
    assert "not sent again" in said.value.fix
    assert list(hub.repos["me/small"].files) == [".gitattributes"]  # of a part of it nothing is seen
    there = set(hub.objects)
    hub.cut_after, before = None, len(hub.puts())
    assert "published: " in sent(run)
    puts = hub.puts()[before:]
    assert len(puts) == len(set(puts)) and not there & set(puts)
    assert {"README.md", "model.safetensors"} < set(hub.repos["me/small"].files)


def test_a_commit_that_fails_leaves_the_files_to_the_next_call(run, hub):
    hub.refusals["small/commit"] = [(500, {}, "something broke")]
    with pytest.raises(PublishError, match=r"committing me/small: .*HTTP 500"):
        sent(run, "publish.parts=[model]")
    puts = hub.puts()
    sent(run, "publish.parts=[model]")
    assert hub.puts() == puts and len(hub.repos["me/small"].commits) == 2


def test_the_hub_is_waited_for_as_it_asks_and_not_for_ever(run, hub, monkeypatch):
    waited = []
    monkeypatch.setattr(hub_client, "wait", lambda seconds, why: waited.append((seconds, why)))
    busy = (429, {"Retry-After": "7"}, "slow down")
    hub.refusals |= {"repos/create": [busy], "lfs/objects/batch": [busy, busy], "small/commit": [busy]}
    sent(run, "publish.parts=[model]")
    assert [seconds for seconds, _ in waited] == [7.0] * 4
    assert "making me/small: the Hub asks to wait 7 s" in waited[0][1]
    hub.refusals["whoami"] = [(429, {"Retry-After": "3600"}, "slow down")]
    with pytest.raises(PublishError, match=r"no more requests from this account for 3600 s \(HTTP 429\)"):
        sent(run, "publish.parts=[model]")


def test_how_long_the_hub_asks_to_wait():
    soon = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30))
    for headers, seconds in (
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": soon}, 29),
        ({"RateLimit": '"api";r=0;t=55'}, 56),
        ({"Retry-After": "soon"}, hub_client.UNSAID_WAIT_S),
        ({}, hub_client.UNSAID_WAIT_S),
    ):
        assert abs(hub_client.wait_asked(headers) - seconds) < 2, headers


def test_a_repository_that_others_wrote_to_is_left_alone(run, hub):
    sent(run, "publish.parts=[model]")
    repo = hub.repos["me/small"]
    repo.commit(repo.files | {"README.md": b"---\nlicense: mit\n---\nmine", "mine.txt": b"mine"})
    with pytest.raises(PublishError, match=r"me/small has moved on since this run published \w{8}") as said:
        sent(run, "publish.parts=[model]")
    assert "--overwrite" in said.value.fix and repo.files["README.md"].endswith(b"mine")
    sent(run, "publish.parts=[model]", overwrite=True)
    assert repo.files["mine.txt"] == b"mine" and b"fine-tuned" in repo.files["README.md"]


def test_what_others_have_changed_is_not_deleted(run, hub, tmp_path):
    """Also where all that is to be published is there: the file that this run no longer has may be another's by now."""
    notice = tmp_path / "NOTICE"
    notice.write_text("ours")
    only = "publish.parts=[model]"
    sent(run, only, f"publish.licence_files=[{notice}]")
    repo = hub.repos["me/small"]
    repo.commit(repo.files | {"NOTICE": b"theirs"})
    with pytest.raises(PublishError, match="me/small has moved on"):
        sent(run, only)
    sent(run, only, overwrite=True)
    assert repo.files["NOTICE"] == b"theirs"
    sent(run, only)
    assert repo.files["NOTICE"] == b"theirs"


@pytest.mark.parametrize(
    "known",
    [
        "abc", {"commit": 5, "files": {}, "endpoint": "e"}, {"commit": "c", "files": [], "endpoint": "e"}, {},
        {"commit": "c", "files": "README.md", "endpoint": "e"}, {"commit": "c", "files": {"a": 1}, "endpoint": "e"},
    ],
)  # fmt: skip
def test_a_record_of_what_is_published_that_is_none_is_damaged(run, hub, known):
    run.published.write_text(json.dumps({"repositories": {"me/small": known}}))
    with pytest.raises(ResumeError, match=r"published\.json is damaged"):
        sent(run)
    assert not hub.puts() and standing_of(run).state == "damaged"


def test_a_token_with_a_letter_that_none_has_is_named_and_not_shown(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_gehe\u00edm")
    with pytest.raises(PublishError, match="has a letter that no token has") as caught:
        sent(run)
    assert "gehe" not in str(caught.value)


@pytest.mark.parametrize("code", [400, 409, 422])
def test_where_waiting_is_no_help_none_is_advised(code):
    reason, fix = hub_client._reason(code, "why it is so", ValueError())
    assert f"(HTTP {code}) (why it is so)" in reason and "wait" not in fix and "--to" in fix


def test_a_repository_that_is_not_ours_is_refused_before_anything_is_sent(run, hub):
    hub.create_for("me/small-GGUF", {"model.gguf": b"theirs"})
    with pytest.raises(PublishError, match="me/small-GGUF is there already, and this run did not make it"):
        sent(run)
    assert not hub.puts() and "me/small" not in hub.repos


def test_a_commit_whose_answer_was_lost_is_known_by_its_files(run, hub):
    sent(run, "publish.parts=[model]")
    known = json.loads(run.published.read_text())
    known["repositories"]["me/small"]["commit"] = "0" * 40
    run.published.write_text(json.dumps(known))
    assert "already there: " in sent(run, "publish.parts=[model]")
    assert published(run)["me/small"]["commit"] == hub.repos["me/small"].head


def test_files_that_are_no_more_part_of_it_go(run, hub):
    sent(run, "publish.parts=[model]")
    known = json.loads(run.published.read_text())
    known["repositories"]["me/small"]["files"]["old.txt"] = "0"
    hub.repos["me/small"].commit(hub.repos["me/small"].files | {"old.txt": b"ours, of an earlier time"})
    known["repositories"]["me/small"]["commit"] = hub.repos["me/small"].head
    run.published.write_text(json.dumps(known))
    sent(run, "publish.parts=[model]")
    assert "old.txt" not in hub.repos["me/small"].files


def test_what_arrives_is_compared_with_what_was_sent(run, hub, monkeypatch):
    real = hub.commit

    def spoilt(request, id, lines):
        for line in lines:
            if line["value"].get("path") == "config.json":
                line["value"]["content"] = "e30="
        return real(request, id, lines)

    monkeypatch.setattr(hub, "commit", spoilt)
    with pytest.raises(PublishError, match=r"me/small has other bytes than were sent: config\.json"):
        sent(run, "publish.parts=[model]")
    assert not published(run)["me/small"]["commit"]


def test_who_may_see_it(run, hub):
    sent(run, "publish.parts=[model]", "publish.public=true")
    assert not hub.repos["me/small"].private
    with pytest.raises(PublishError, match="me/small is public on the Hub, and was to be published privately"):
        sent(run, "publish.parts=[model]")
    hub.repos["me/small"].private = True
    said = sent(run, "publish.parts=[model]", "publish.public=true")
    assert "(public)" in said and not hub.repos["me/small"].private


@pytest.mark.parametrize(
    "refusal, said, fix",
    [
        ((401, {}, "Invalid credentials"), "does not know this token", "HF_TOKEN"),
        ((403, {}, "You don't have the rights"), "may not do that", "write access"),
        ((403, {}, "Private repository storage limit reached"), "no room left", "billing"),
        ((404, {}, "Not found"), "does not find it", "--to"),
        ((413, {}, "Payload too large"), "too large for the Hub", "smaller"),
    ],
)
def test_what_the_hub_refuses_is_said_with_a_fix(run, hub, refusal, said, fix):
    hub.refusals["repos/create"] = [refusal]
    with pytest.raises(PublishError, match=said) as caught:
        sent(run, "publish.parts=[model]")
    assert refusal[2] in str(caught.value) and fix in caught.value.fix and TOKEN not in str(caught.value)


def test_a_token_that_does_not_do_is_refused_first(run, hub, monkeypatch):
    with pytest.raises(PublishError, match="the token is of me, who is neither you nor"):
        publish(run.path, ["publish.to=you/small"], send=True)
    hub.role = "read"
    with pytest.raises(PublishError, match="may only read"):
        sent(run)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    with pytest.raises(PublishError, match="does not know this token") as caught:
        sent(run)
    assert "hf_wrong" not in str(caught.value) and caught.value.__context__ is None
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(PublishError, match="needs a token of the Hub"):
        sent(run)
    assert not hub.repos and not [path for _, path in hub.log if "create" in path]


def test_a_token_that_the_hub_repeats_is_not_shown(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-form")
    hub.refusals["whoami"] = [(400, {}, "what is a-token-of-another-form, and hf_othersothers?")]
    with pytest.raises(PublishError, match=r"what is \*\*\*, and \*\*\*\?"):
        sent(run)


def test_a_repository_that_is_deleted_meanwhile_and_a_full_store_are_said(run, hub):
    hub.refusals["preupload"] = [(404, {"X-Error-Code": "RepoNotFound"}, "Repository not found")]
    with pytest.raises(PublishError, match="does not find it"):
        sent(run, "publish.parts=[model]")
    hub.full = "Storage limit reached for me"
    with pytest.raises(PublishError, match=r"no room left \(.*Storage limit reached for me") as caught:
        sent(run, "publish.parts=[model]")
    assert "billing" in caught.value.fix


def test_a_commit_goes_on_top_of_the_one_that_was_seen(run, hub, monkeypatch):
    real = upload._sent

    def pushed_to_meanwhile(client, repository, file, opened):
        repo = hub.repos[repository.id]
        if "mine.txt" not in repo.files:
            repo.commit(repo.files | {"mine.txt": b"mine"})
        return real(client, repository, file, opened)

    monkeypatch.setattr(upload, "_sent", pushed_to_meanwhile)
    with pytest.raises(PublishError, match="has moved on while this was sent"):
        sent(run, "publish.parts=[model]")
    assert set(hub.repos["me/small"].files) == {".gitattributes", "mine.txt"}


def test_without_a_network_it_is_said(run, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(PublishError, match="the Hub cannot be reached"):
        sent(run)


def test_nothing_is_published_that_is_not_proved_whole_and_new(run, tmp_path):
    was = (run.model / "record.json").read_text()
    change(run.model, lambda record: {"proofs": [record["proofs"][0] | {"skipped_because": "memory", "value": None}]})
    with pytest.raises(ProofError, match=r"not all is proved.*\n.*NOT proved: .*: memory"):
        publish(run.path, [TO])
    said = publish(run.path, [TO, "publish.unproved=true"], cards=tmp_path / "cards")
    assert "NOT all: 1 skipped" in said
    cards = [card.read_text() for card in tmp_path.glob("cards/*/README.md")]
    assert len(cards) == 3 and all("| **NOT proved**: memory |" in card for card in cards)
    change(run.model, lambda record: {"proofs": [record["proofs"][0] | {"skipped_because": None, "value": 1e9}]})
    with pytest.raises(ProofError, match="a proof does not hold"):
        publish(run.path, [TO, "publish.unproved=true"])
    (run.model / "record.json").write_text(was)

    file = run.gguf_file("small", "Q8_0")
    was = file.read_bytes()
    file.write_bytes(was[:-1] + bytes([was[-1] ^ 1]))
    with pytest.raises(ResumeError, match="is not as it was written"):
        publish(run.path, [TO])
    file.write_bytes(was)
    with pytest.raises(ResumeError, match=r"not what its recipe says(.|\n)*lora\.alpha"):
        publish(run.path, [TO, "lora.alpha=3"])
    with pytest.raises(ResumeError, match="not what its recipe says") as caught:
        publish(run.path, [TO, "export.gguf=[F16,Q8_0]"])
    assert f"`tunesmith run {run.path} --set 'export.gguf=[F16,Q8_0]'`, which makes it anew" in caught.value.fix
    evaluation = run.evaluation.rename(tmp_path / "evaluation")
    with pytest.raises(ResumeError, match="has no whole evaluation/, whose answers and speeds the cards tell"):
        publish(run.path, [TO])
    evaluation.rename(run.evaluation)
    metrics = run.metrics.rename(tmp_path / "metrics")
    assert "the cards have no learning curve: metrics.jsonl is gone" in publish(run.path, [TO])
    metrics.rename(run.metrics)
    (run.gguf / "record.json").unlink()
    with pytest.raises(ResumeError, match="has no whole gguf/"):
        publish(run.path, [TO])
    assert "me/small (private)" in publish(run.path, [TO, "publish.parts=[model]"])


def test_what_is_printed_to_be_typed_says_what_was_typed(run):
    words = ("publish", run.path, "--to", "me/small", "--public", "--only", "gguf", "--set", "publish.language=[en]")
    done = completed(*words)
    assert done.returncode == 0, done.stderr
    assert "me/small-GGUF (public)" in done.stdout and "me/small-lora" not in done.stdout
    assert done.stdout.rstrip().endswith(shlex.join([*map(str, words), "--yes"]))
    assert "publish.parts.0" in completed(*words[:4], "--only", "all").stderr


def test_names_and_parts_that_do_not_do(run, tmp_path):
    with pytest.raises(RecipeError, match=r"publish\.to says no repository"):
        publish(run.path)
    with pytest.raises(RecipeError, match="can be no repository"):
        publish(run.path, ["publish.to=me/small--model"])
    with pytest.raises(RecipeError, match=r"publish\.to"):
        publish(run.path, ["publish.to=small"])
    done = completed("publish", run.path, "--to", "small")
    assert done.returncode == 2 and "--to small is no USER/NAME" in done.stderr and "^[" not in done.stderr
    said = publish(run.path, [TO, "publish.base_on_hub=null"])
    assert "me/small-lora" not in said and "the adapter is left out" in said
    with pytest.raises(RecipeError, match="the adapter is left out"):
        publish(run.path, [TO, "publish.base_on_hub=null", "publish.parts=[lora]"])
    with pytest.raises(ResumeError, match="is there already"):
        publish(run.path, [TO], cards=tmp_path)


def test_a_recipe_with_publish_to_ends_in_a_published_model(run, hub, monkeypatch, capsys):
    from tunesmith import api

    api.run(run.path, changes=[TO])
    assert set(hub.repos) == set(REPOSITORIES)
    before = len(hub.log)
    api.run(run.path)  # the run has kept it
    assert len(hub.log) == before and "me/small is published already" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(PublishError, match="needs a token"):
        api.run(run.path)
