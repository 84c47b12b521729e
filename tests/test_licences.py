"""What a base's licence asks is done or refused: the name, the words on the card, the files that go along; and the card
says what the records say.
"""

import json
import shutil

import pytest
import study_runs
import yaml
from hub_store import card_problems
from training_runs import recipe_with

from tunesmith.errors import RecipeError
from tunesmith.proof.adapter_gguf import CHOICE, KL
from tunesmith.recipe import ExportConfig, PublishConfig, Source
from tunesmith.release import card
from tunesmith.release.card import OF_ADAPTER, draw_losses, origin_of
from tunesmith.release.licences import LICENCES, refuse_clash, refuse_name, terms_of
from tunesmith.release.publish import make_plan
from tunesmith.runs import Run
from tunesmith.weights import builtin

LLAMA = "---\nlanguage: [en]\nlicense: llama3.2\n---\n"
ASKED = PublishConfig()
COUNTS = {"held_out_loss": 1.25, "base_held_out_loss": 3.0, "bits_per_byte": 0.4, "base_bits_per_byte": 1.0,
          "precision": "fp32", "device": "CPU", "train_seconds": 321.0}  # fmt: skip


@pytest.fixture
def base(tmp_path):
    """The folder of a base: what its card says is the test's."""
    folder = tmp_path / "base"
    folder.mkdir()
    return folder


def test_a_llama_is_named_so_and_its_licence_goes_along(base):
    (base / "README.md").write_text(LLAMA)
    with pytest.raises(RecipeError, match="its text goes along, and org/llama has no LICENSE") as caught:
        terms_of(base, ASKED, "org/llama")
    assert "publish.licence_files" in caught.value.fix
    (base / "LICENSE.txt").write_text("the agreement")
    (base / "USE_POLICY.md").write_text("the policy")
    terms = terms_of(base, ASKED, "org/llama")
    assert set(terms.files) == {"LICENSE.txt", "USE_POLICY.md", "NOTICE"}
    notice = "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc."
    assert terms.files["NOTICE"].decode().startswith(notice) and terms.metadata() == {"license": "llama3.2"}
    assert any("Built with Llama" in duty for duty in terms.duties())
    refuse_name(terms, "Llama-mine")
    for name in ("mine", "llama-mine", "my-Llama"):
        with pytest.raises(RecipeError, match="must begin with Llama") as caught:
            refuse_name(terms, name)
        assert f"Llama-{name}" in caught.value.fix
    (base / "NOTICE").write_bytes(b"of others\n")
    assert terms_of(base, ASKED, "org/llama").files["NOTICE"].endswith(b"\nof others\n")
    (base / "NOTICE").write_bytes(terms.files["NOTICE"])
    assert terms_of(base, ASKED, "org/llama").files["NOTICE"] == terms.files["NOTICE"]


@pytest.mark.parametrize("card", ["", "no metadata", "---\nlicense: [a\n---\n", "---\nlicense: llama99\n---\n"])
def test_a_licence_that_is_not_known_is_refused_until_it_is_named(base, card):
    (base / "README.md").write_text(card)
    with pytest.raises(RecipeError, match="cannot be seen to") as caught:
        terms_of(base, ASKED, "org/odd")
    assert "publish.licence" in caught.value.fix and "apache-2.0" in caught.value.fix
    with pytest.raises(RecipeError, match="MIT License asks that its text goes along"):
        terms_of(base, PublishConfig(licence="mit"), "org/odd")
    (base / "LICENSE").write_text("the text")
    assert terms_of(base, PublishConfig(licence="mit"), "org/odd").licence is LICENCES["mit"]
    terms = terms_of(base, PublishConfig(licence="my-licence"), "org/odd")
    assert terms.metadata() == {"license": "other", "license_name": "my-licence", "license_link": "LICENSE"}
    (base / "LICENSE").unlink()
    with pytest.raises(RecipeError, match="neither an address nor a text is known"):
        terms_of(base, PublishConfig(licence="my-licence"), "org/odd")


def test_the_text_of_apaches_licence_goes_along_also_where_the_base_has_none(base):
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert b"Apache License" in terms_of(base, ASKED, "org/free").files["LICENSE"]
    (base / "LICENSE.txt").write_text("the base's own")
    assert terms_of(base, ASKED, "org/free").files == {"LICENSE.txt": b"the base's own"}


@pytest.mark.parametrize(
    ("parent", "of_parent"),
    [("meta-llama/Llama-3.2-1B", "llama3.2"), ("meta-llama/Meta-Llama-3-8B", "llama3"),
     ("google/gemma-3-1b-it", "gemma"), ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1")],
)  # fmt: skip
def test_a_base_is_under_the_licence_of_what_it_was_made_from(base, parent, of_parent):
    (base / "README.md").write_text(f"---\nlicense: apache-2.0\nbase_model: [{parent}]\n---\n")
    (base / "LICENSE").write_text("the text")
    with pytest.raises(
        RecipeError, match=f"apache-2.0, and it was made from {parent}, which is under {of_parent}"
    ) as no:
        terms_of(base, ASKED, "org/tuned")
    assert f"set publish.licence to {of_parent}" in no.value.fix
    assert terms_of(base, PublishConfig(licence=of_parent), "org/tuned").licence is LICENCES[of_parent]
    assert terms_of(base, PublishConfig(licence="apache-2.0"), "org/tuned").licence is LICENCES["apache-2.0"]
    (base / "README.md").write_text(f"---\nlicense: {of_parent}\nbase_model: {parent}\n---\n")
    assert terms_of(base, ASKED, "org/tuned").licence is LICENCES[of_parent]


@pytest.mark.parametrize(
    ("name", "licence", "parent"),
    [("meta-llama/Llama-3.3-70B-Instruct", "llama3.3", "meta-llama/Llama-3.1-70B"),
     ("org/gemma-4-tuned", "apache-2.0", "google/gemma-4-E4B"), ("google/gemma-x", "apache-2.0", "google/gemma-2-2b"),
     ("org/both", "llama3.3", "meta-llama/Llama-3.1-8B")],
)  # fmt: skip
def test_what_a_licensor_says_of_its_own_and_what_is_no_other_licence_holds(base, name, licence, parent):
    (base / "README.md").write_text(f"---\nlicense: {licence}\nbase_model: {parent}\n---\n")
    (base / "LICENSE").write_text("the text")
    assert terms_of(base, ASKED, name).licence is LICENCES[licence]


def test_licence_files_that_merge_copied_from_the_base_are_no_clash():
    refuse_clash({"LICENSE": b"x", "NOTICE": b"y", "USE_POLICY.md": b"z"}, {"LICENSE", "NOTICE", "USE_POLICY.md", "a"})
    with pytest.raises(RecipeError, match=r"the licence's config\.json has the name of a file"):
        refuse_clash({"LICENSE": b"x", "config.json": b"y"}, {"LICENSE", "config.json"})


def test_two_files_of_one_name_and_names_of_the_models_own_files_are_refused(base, tmp_path, plan):
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    paths = [tmp_path / name / "LICENSE" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("text")
    with pytest.raises(RecipeError, match="two files of the name LICENSE"):
        terms_of(base, PublishConfig(licence_files=tuple(map(str, paths))), "org/free")
    for name in ("Modelfile", "README.md", "loss.png"):
        (tmp_path / name).write_text("of the licence")
        with pytest.raises(RecipeError, match=f"the licence's {name} has the name of a file"):
            plan(licence_files=(str(tmp_path / name),), parts=("gguf",))


def test_a_licence_that_is_known_is_not_renamed(base):
    (base / "README.md").write_text("---\nlicense: gemma\n---\n")
    with pytest.raises(RecipeError, match=r"publish\.licence is mit, and org/gemma is under gemma"):
        terms_of(base, PublishConfig(licence="mit"), "org/gemma")
    (base / "LICENSE").write_text("the terms")
    terms = terms_of(base, PublishConfig(licence="gemma"), "org/gemma")
    assert b"Gemma Terms of Use" in terms.files["NOTICE"] and any("prohibited_use" in duty for duty in terms.duties())


def test_a_licence_with_a_name_of_its_own_and_files_of_the_recipe(base, tmp_path):
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LINK\n---\n")
    text = tmp_path / "LICENSE"
    text.write_text("the agreement")
    terms = terms_of(base, PublishConfig(licence_files=(str(text),)), "Qwen/Qwen2.5-3B")
    assert terms.metadata() == {"license": "other", "license_name": "qwen-research", "license_link": "LINK"}
    assert terms.files["LICENSE"] == b"the agreement" and "no commercial use" in " ".join(terms.duties())
    with pytest.raises(RecipeError, match="there is no file nowhere"):
        terms_of(base, PublishConfig(licence_files=("nowhere",)), "Qwen/Qwen2.5-3B")


def test_every_row_of_the_table_is_one_the_hub_takes():
    for licence in LICENCES.values():
        assert licence.link.startswith("https://") and (licence.text or not licence.built_with)
        assert not licence.prefix or licence.built_with.startswith("Built with")


def test_where_others_find_the_base():
    known = origin_of(recipe_with().model_copy(update={"base": "org/model@" + "a" * 40}))
    assert (known.id, known.revision, known.same_weights, known.remark) == ("org/model", "a" * 40, True, "")
    own = origin_of(recipe_with().model_copy(update={"base": "builtin:smollm2-135m-instruct"}))
    assert own.id == builtin.HUB_ID and not own.same_weights and "4-bit file (Q4_1)" in own.remark
    nowhere = origin_of(recipe_with())
    assert nowhere.id is None and "author's machine" in nowhere.remark


PROOF = {
    "Q8_0": {
        "held_out": {"loss": 1.5, "bits_per_byte": 0.5, "positions": 1234, "rows": 7},
        "against_F16": {"mean_kl": 0.00321, "top1": 0.987},
    }
}


def fill(folder, _=None):
    """What the stages leave, as far as a card asks for it."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/tmp/base"}')
    (folder / "tiny-Q8_0.gguf").write_text("GGUF")
    (folder / "proof.json").write_text(json.dumps(PROOF))
    (folder / "Modelfile").write_text("FROM ./tiny-Q8_0.gguf")
    (folder / "tiny-lora-F16.gguf").write_text("GGUF")
    return {}


@pytest.fixture
def plan(tiny_base, tmp_path, monkeypatch):
    """Plans of a finished run whose records say round numbers, with the base's card as it is given."""
    folder = shutil.copytree(tiny_base, tmp_path / "Llama-mine")
    (folder / "LICENSE").write_text("the agreement")
    export = ExportConfig(gguf=("Q8_0",))
    sources = (Source(path="/home/anna/rows.jsonl"), Source(path="org/rows"))
    data = recipe_with().data.model_copy(update={"sources": sources})
    recipe = recipe_with().model_copy(update={"base": str(folder), "export": export, "data": data})
    monkeypatch.setattr(study_runs, "_adapter", fill)
    monkeypatch.setattr(study_runs, "_proved", fill)
    run = Run(study_runs.finished_run(tmp_path / "run", folder, recipe, loss=1.25))
    study_runs.change(
        run.data,
        lambda was: {
            "counts": was["counts"] | {"read": 33, "dropped": {"said twice": 3}, "revisions": {"org/rows": "d" * 40}}
        },
    )
    study_runs.change(run.adapter, lambda was: {"counts": was["counts"] | COUNTS})

    def made(card=LLAMA, **publish):
        (folder / "README.md").write_text(card)
        config = PublishConfig(**({"to": "me/Llama-mine", "base_on_hub": "org/llama"} | publish))
        return make_plan(recipe.model_copy(update={"publish": config}), run)

    return made


def cards(plan):
    files = {each.part: {file.name: file for file in each.files} for each in plan.repositories}
    return {part: named["README.md"].content.decode() for part, named in files.items()}, files


def test_the_card_says_what_the_records_say(plan):
    texts, files = cards(plan(language=("en",), data="Made up, CC0."))
    heads = {part: yaml.safe_load(text.split("---\n")[1]) for part, text in texts.items()}
    for part, relation in (("model", "finetune"), ("lora", "adapter"), ("gguf", "quantized")):
        assert not list(card_problems(texts[part]))
        assert heads[part]["base_model_relation"] == relation and heads[part]["license"] == "llama3.2"
        assert "**Built with Llama**" in texts[part] and {"LICENSE", "NOTICE", "loss.png"} <= files[part].keys()
        assert "| loss, nats per token | 3.0000 | 1.2500 |" in texts[part] and "Made up, CC0." in texts[part]
        assert "| left out: said twice | 3 |" in texts[part] and heads[part]["language"] == ["en"]
        assert "author's machine" in texts[part] and "/tmp" not in texts[part]
    assert heads["gguf"]["base_model"] == "me/Llama-mine" and heads["lora"]["base_model"] == "org/llama"
    assert all(head["datasets"] == ["org/rows"] for head in heads.values())
    assert "- `rows.jsonl`, a file of the author\n" in texts["model"] and "anna" not in "".join(texts.values())
    assert f"[org/rows](https://huggingface.co/datasets/org/rows/tree/{'d' * 40})" in texts["model"]
    measured = heads["gguf"]["model-index"][0]["results"][0]["metrics"]
    assert {"type": "loss", "value": 1.5, "name": "Held-out loss, nats per token (Q8_0)"} in measured
    where = "1,234 positions of 7 rows"  # the run holds out others beside them
    assert heads["gguf"]["model-index"][0]["results"][0]["dataset"]["name"] == f"held-out conversations ({where})"
    assert f"by llama.cpp at {where} that were held out" in texts["gguf"]
    assert "| 0.0032 | 98.7% | 1.5000 | 0.5000 |" in texts["gguf"] and "1.7e-05 | 0.0001 | 64 |" in texts["gguf"]
    assert "1.7e-05" not in texts["model"] and "llama-cli -hf me/Llama-mine-GGUF:Q8_0" in texts["model"]
    assert "Modelfile" in files["gguf"] and "ollama create tiny -f Modelfile" in texts["gguf"]
    assert "ollama create" not in texts["model"] and "adapter, PEFT and GGUF" in texts["gguf"]
    assert "--lora tiny-lora-F16.gguf" in texts["lora"] and "tiny-lora-F16.gguf" in files["lora"]
    assert "tiny-lora-F16.gguf" not in files["gguf"] and "--lora" not in texts["gguf"]
    assert "hf.co/me/Llama-mine-GGUF:Q8_0" in texts["gguf"] and "AutoPeftModelForCausalLM" in texts["lora"]


def test_each_card_has_the_proofs_of_what_it_is_of(plan):
    run = plan().run
    assert KL.startswith(OF_ADAPTER) and CHOICE.startswith(OF_ADAPTER)
    study_runs.change(
        run.gguf,
        lambda was: {"proofs": [*was["proofs"], {"name": KL, "value": 4.2e-05, "limit": 1e-4, "positions": 9}]},
    )
    texts, _ = cards(plan())
    assert "4.2e-05" in texts["lora"] and "4.2e-05" not in texts["gguf"]
    assert "1.7e-05" in texts["gguf"] and "1.7e-05" not in texts["lora"]


def test_a_fence_in_the_recipe_ends_no_block_of_the_card(plan, monkeypatch):
    monkeypatch.setattr(card, "_recipe_text", lambda *_: "chat:\n  system: |\n    ````\n")
    assert "\n`````yaml\nchat:\n  system: |\n    ````\n`````\n" in cards(plan())[0]["model"]


def test_the_card_counts_the_prompts_that_were_asked(plan):
    run = plan().run
    counts = {"answers": 3, "stopped": 1, "gguf": "Q8_0", "threads": 2, "processor": "a CPU", "first_token_s": 0.5,
              "tokens_per_s": 7.0, "peak_memory_bytes": 1}  # fmt: skip
    study_runs.change(run.evaluation, lambda was: {"counts": {"base": counts, "tuned": counts}})
    assert "\n3 prompts, answered by the Q8_0 GGUF file" in cards(plan())[0]["gguf"]


@pytest.mark.parametrize(("steps", "said"), [(1, "; 1 step of"), (20, "; 20 steps of")])
def test_the_card_says_one_step_and_many_steps(plan, steps, said):
    study_runs.change(plan().run.adapter, lambda was: {"counts": was["counts"] | {"steps": steps}})
    assert said in cards(plan())[0]["lora"]


def test_parts_that_are_left_out_are_not_on_the_card(plan):
    texts, _ = cards(plan(parts=("gguf",)))
    assert list(texts) == ["gguf"] and "me/Llama-mine-lora" not in texts["gguf"]
    assert yaml.safe_load(texts["gguf"].split("---\n")[1])["base_model"] == "org/llama"


def test_the_curve_is_a_picture_of_the_metrics_and_the_same_each_time(plan):
    run = plan().run
    assert draw_losses(run).startswith(b"\x89PNG") and draw_losses(run) == draw_losses(run)
