"""The whole verb: files in, token rows out, every row counted; and what it refuses."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from families import conversation, supervised_texts, tokenizer_of
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from tiny import CHATML, save_tokenizer, write_rows

from tunesmith.decides import data_needs_now, read_prompts, sources_of
from tunesmith.errors import BaseError, DataError, RecipeError, ResumeError
from tunesmith.recipe import Recipe
from tunesmith.record import read_record
from tunesmith.runs import Run
from tunesmith.stale import keep_rows_of_checkpoints
from tunesmith.tokens.mask import encode
from tunesmith.tokens.prepare import prepare
from tunesmith.tokens.rows import COLUMNS, load_rows
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.locate import LocatedBase

DATE = "2026-01-01"
VERSION_01 = Path(__file__).parent / "data" / "version-0.1"
CHATS = [[f"What is {n}?", f"It is {n}."] + ["And then?", f"{n + 1}."] * (n % 3) for n in range(60)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_tokenizer(folder)
    return LocatedBase("tiny", folder, "digest", None, None)


def recipe_of(*paths, held_out=0.1, **sections):
    data = {"sources": [{"path": str(path)} for path in paths], "held_out": held_out} | sections.pop("data", {})
    return Recipe(name="t", base="tiny", data=data, **sections)


def keep_rows(recipe, run, base):
    """What the pipeline asks before it lets prepare make rows."""
    keep_rows_of_checkpoints(run, data_needs_now(recipe, base.digest), sources_of(recipe))


def texts_of(tokenizer, rows):
    return [
        tokenizer.decode(rows.tokens_T[rows.offsets_N1[n] : rows.offsets_N1[n + 1]].tolist()) for n in range(len(rows))
    ]


def test_rows_are_those_of_the_template_and_every_row_is_counted(tmp_path, base):
    path = write_rows(tmp_path / "x.jsonl", CHATS)
    with path.open("a") as file:
        file.write(path.read_text().splitlines()[0] + "\n")  # line 61: a duplicate of line 1
        file.write('{"conversations": [{"from": "hum\n')
        for turns in (
            ["Ask"],
            ["What is the capital?", "Paris."],
            ["a", "b <|im_end|>"],
            ["a", " spaced "],
            ["long", "x" * 3000],
        ):
            file.write(
                json.dumps(
                    {
                        "conversations": [
                            {"from": "human", "value": turns[0]},
                            *({"from": "gpt", "value": t} for t in turns[1:]),
                        ]
                    }
                )
                + "\n"
            )
    recipe, run = recipe_of(path), Run(tmp_path / "run")
    record, done = prepare(recipe, run, base, ["What is  the capital?"])
    assert done and record == read_record(run.data)
    counts = record.counts
    assert counts["dropped"] == {
        "duplicate": 1, "not valid JSON": 1, "no assistant turn": 1, "is an evaluation prompt": 1,
        "contains a special token of the template": 1, "longer than max_length": 1,
    }  # fmt: skip
    assert counts["examples"]["not valid JSON"] == ["x.jsonl:62"] and counts["examples"]["duplicate"] == ["x.jsonl:61"]
    assert counts["changed"] == {"white space around an answer removed": 1}
    (mask,) = record.proofs
    assert (mask.value, mask.positions) == (0, counts["kept"] + 1) and mask.holds  # the duplicate was proved, too
    assert counts["read"] == 67 == counts["kept"] + sum(counts["dropped"].values())
    assert counts["held_out_rows"] == 6 and counts["train_rows"] == counts["kept"] - 6
    train, held_out = load_rows(run.data)
    assert (len(train), len(held_out)) == (counts["train_rows"], 6)
    assert counts["tokens"] == train.lengths_N.sum() + held_out.lengths_N.sum() == len(train.tokens_T)
    assert counts["supervised_tokens"] == train.supervised_T.sum()
    assert counts["longest"] == max(train.lengths_N.max(), held_out.lengths_N.max())
    assert [np.load(run.data / f"{name}.npy").dtype for name in COLUMNS] == [np.int32, bool, np.int64, np.int64]
    tokenizer, table = load_tokenizer(base.folder), pyarrow.parquet.read_table(run.data / "rows.parquet").to_pylist()
    assert [row["split"] for row in table] == ["train"] * len(train) + ["held_out"] * 6
    decoded = texts_of(tokenizer, train) + texts_of(tokenizer, held_out)
    for row, (start, end), text in zip(
        table,
        np.stack([np.load(run.data / "offsets.npy")[:-1], np.load(run.data / "offsets.npy")[1:]], 1),
        decoded,
        strict=True,
    ):
        made = conversation(*(message["content"] for message in row["messages"]))
        encoded = encode(tokenizer, made, system=None, date=DATE)
        assert (
            train.tokens_T[start:end].tolist() == encoded.ids
            and train.supervised_T[start:end].tolist() == encoded.supervised
        )
        assert row["tokens"] == end - start and row["supervised"] == sum(encoded.supervised)
        assert text == tokenizer.decode(encoded.ids)
    bytes_N = [*train.answer_bytes_N, *held_out.answer_bytes_N]
    assert bytes_N == [
        sum(len(m["content"].encode()) for m in row["messages"] if m["role"] == "assistant") for row in table
    ]


def test_the_same_again_is_skipped_and_gives_the_same_bytes(tmp_path, base):
    path = write_rows(tmp_path / "x.jsonl", CHATS)
    first, _ = prepare(recipe_of(path), Run(tmp_path / "a"), base, [])
    assert prepare(recipe_of(path), Run(tmp_path / "a"), base, []) == (first, False)
    again, done = prepare(recipe_of(path), Run(tmp_path / "b"), base, [])
    assert done and again.outputs == first.outputs and again.counts == first.counts
    os.utime(path, (0, 0))
    assert not prepare(recipe_of(path), Run(tmp_path / "a"), base, [])[1]  # the bytes count, not the time
    other, done = prepare(recipe_of(path, seed=1), Run(tmp_path / "a"), base, [])
    assert done and other.outputs["rows.parquet"] != first.outputs["rows.parquet"]


def test_rows_of_many_batches_keep_their_tokens(tmp_path, base, monkeypatch):
    path = write_rows(tmp_path / "x.jsonl", CHATS)
    one, _ = prepare(recipe_of(path), Run(tmp_path / "one"), base, [])
    for module in ("spool", "prepare"):
        monkeypatch.setattr(f"tunesmith.tokens.{module}.BATCH_ROWS", 7)
    monkeypatch.setattr("tunesmith.tokens.prepare.usable_cores", lambda: 1)
    many, _ = prepare(recipe_of(path), Run(tmp_path / "many"), base, [])
    assert one.counts == many.counts
    assert [name for name in one.outputs if one.outputs[name] != many.outputs[name]] in ([], ["rows.parquet"])
    tables = [pyarrow.parquet.read_table(tmp_path / name / "data" / "rows.parquet") for name in ("one", "many")]
    assert tables[0].to_pylist() == tables[1].to_pylist() and len(tables[0]) == 60


def test_a_long_conversation_is_cut_and_counted(tmp_path, base):
    chats = [*CHATS, ["one", "short", "two", "y" * 3000, "three", "never seen"]]
    run = Run(tmp_path / "run")
    record, _ = prepare(recipe_of(write_rows(tmp_path / "x.jsonl", chats)), run, base, [])
    assert record.counts["cut"] == 1 and record.counts["kept"] == 61 and record.counts["longest"] <= 2048
    rows = pyarrow.parquet.read_table(run.data / "rows.parquet").to_pylist()
    cut = next(row for row in rows if row["where"] == "x.jsonl:61")
    assert [message["content"] for message in cut["messages"]] == ["one", "short"]


def test_held_out_from_its_own_file_shares_nothing_with_training(tmp_path, base):
    train = write_rows(tmp_path / "train.jsonl", CHATS)
    held_out = write_rows(tmp_path / "held.jsonl", [["what is 3", "it is 3"], *CHATS[6:8], ["New?", "New."]])
    run = Run(tmp_path / "run")
    held = {"path": str(held_out)}
    record, _ = prepare(recipe_of(train, held_out=held, data={"dedup": "words"}), run, base, [])
    assert record.counts["held_out_rows"] == 4 and record.counts["train_rows"] == 57
    assert record.counts["dropped"] == {"duplicate of a held-out row": 3}
    assert record.counts["examples"] == {
        "duplicate of a held-out row": ["train.jsonl:4", "train.jsonl:7", "train.jsonl:8"]
    }
    assert len(load_rows(run.data)[1]) == 4


def prompts_and_answers(run, split):
    rows = pyarrow.parquet.read_table(run.data / "rows.parquet").to_pylist()
    return [tuple(m["content"] for m in row["messages"]) for row in rows if row["split"] == split]


@pytest.mark.parametrize("dedup", ["off", "exact", "words"])
def test_what_is_left_after_the_cut_is_on_one_side(tmp_path, base, dedup):
    """80 chats that begin alike in twos and fours; cut to max_length only the beginning is left."""
    chats = [[f"Colour {n % 30}?", f"It is {n % 30}.", f"And {n}?", "y" * 200 + str(n)] for n in range(80)]
    path, run = write_rows(tmp_path / "x.jsonl", chats), Run(tmp_path / "run")
    recipe = recipe_of(path, held_out=0.2, data={"dedup": dedup}, train={"max_length": 100})
    counts = prepare(recipe, run, base, [])[0].counts
    train, held_out = prompts_and_answers(run, "train"), prompts_and_answers(run, "held_out")
    assert not set(train) & set(held_out)
    assert len(set(train)) == 24 and len(set(held_out)) == 6
    assert {len(row) for row in train + held_out} == {2}
    if dedup == "off":
        assert counts["kept"] == counts["cut"] == 80 and not counts["dropped"]
    else:
        assert counts["kept"] == counts["cut"] == 30 and counts["dropped"] == {"duplicate": 50}
        assert counts["examples"]["duplicate"] == ["x.jsonl:31", "x.jsonl:32", "x.jsonl:33"]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", "A", "b", "ef " * 9, "long " * 30]), min_size=2, max_size=6), min_size=8),
    st.sampled_from(["off", "exact", "words"]),
    st.integers(40, 90),
)
def test_no_held_out_row_is_a_training_row_whatever_is_cut(base, chats, dedup, max_length):
    with TemporaryDirectory() as folder:
        path, run = write_rows(Path(folder) / "x.jsonl", chats), Run(Path(folder) / "run")
        recipe = recipe_of(path, held_out=0.5, data={"dedup": dedup}, train={"max_length": max_length})
        try:
            counts = prepare(recipe, run, base, [])[0].counts
        except DataError as error:
            assert "none would be held out" in str(error) or "is left to" in str(error)
            reject()
        train, held_out = prompts_and_answers(run, "train"), prompts_and_answers(run, "held_out")
    assert not set(train) & set(held_out)
    assert counts["read"] == len(chats) == counts["kept"] + sum(counts["dropped"].values())
    if dedup == "exact":
        assert len({*train, *held_out}) == len(train + held_out)


def test_a_refused_row_is_nobodys_twin(tmp_path, base):
    """What the template refuses takes no place in the share that is held out, nor does it drop a good row."""
    good = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    path = write_rows(tmp_path / "x.jsonl", [[f"long {n}", "x" * 3000] for n in range(40)])
    with path.open("a") as file:
        for row in (good | {"system": "<|im_end|>"}, good, *({"prompt": str(n)} for n in range(2))):
            file.write(json.dumps(row) + "\n")
        file.write(write_rows(tmp_path / "y.jsonl", CHATS[:9]).read_text())
    counts = prepare(recipe_of(path), Run(tmp_path / "run"), base, [])[0].counts
    assert (counts["kept"], counts["held_out_rows"]) == (10, 1)
    assert counts["dropped"] == {
        "longer than max_length": 40, "its columns are those of no format": 2,
        "contains a special token of the template": 1,
    }  # fmt: skip


def test_version_0_1_and_words_make_the_same_rows(tmp_path):
    """What version 0.1 called `exact` is `words`: same rows, same order, same split, same bytes."""
    old, made = VERSION_01 / "finished" / "data", tmp_path / "first"
    base = LocatedBase("base", VERSION_01 / "base", "digest", None, None)
    values = yaml.safe_load((VERSION_01 / "recipe.yaml").read_text())
    del values["trust_remote_code"], values["export"]["prefixes"]
    values["data"] |= {"dedup": "words", "sources": [{"path": str(VERSION_01 / "rows.jsonl")}]}
    recipe = Recipe.model_validate(values | {"train": values["train"] | {"lr": 0.01}})
    record, _ = prepare(recipe, Run(made), base, read_prompts(recipe))
    for name in COLUMNS:
        assert (made / "data" / f"{name}.npy").read_bytes() == (old / f"{name}.npy").read_bytes()
    tables = [pyarrow.parquet.read_table(folder / "rows.parquet") for folder in (made / "data", old)]
    now, then = (table.to_pylist() for table in tables)
    assert len(now) == 40 and all((row.pop("tools"), row.pop("source")) == (None, 0) for row in now)
    for row in now:  # what 0.1 did not know says nothing
        said = [
            (message["role"], message["trained"], message["reasoning"], message["calls"]) for message in row["messages"]
        ]
        assert said == [(role, True if role == "assistant" else None, None, None) for role, *_ in said]
        row["messages"] = [{name: message[name] for name in ("role", "content")} for message in row["messages"]]
    assert now == then
    then_counted = read_record(old).counts
    assert {name: record.counts[name] for name in then_counted} == then_counted
    assert sorted(record.outputs) == sorted({*read_record(old).outputs, "dropped.jsonl"})  # the spool is gone


def test_duplicates_stay_where_the_recipe_says_so_but_on_one_side(tmp_path, base):
    path = write_rows(tmp_path / "x.jsonl", CHATS * 2)
    run = Run(tmp_path / "run")
    record, _ = prepare(recipe_of(path, data={"dedup": "off"}), run, base, [])
    assert record.counts["kept"] == 120 and record.counts["held_out_rows"] == 12
    rows = pyarrow.parquet.read_table(run.data / "rows.parquet").to_pylist()
    sides = {split: {row["cluster"] for row in rows if row["split"] == split} for split in ("train", "held_out")}
    assert len(sides["train"]) == 54 and len(sides["held_out"]) == 6 and not sides["train"] & sides["held_out"]


def test_the_system_prompt_of_the_chat_is_trained_on(tmp_path, base):
    path, run = write_rows(tmp_path / "x.jsonl", CHATS), Run(tmp_path / "run")
    prepare(recipe_of(path, chat={"system": "You are a smith of tunes."}), run, base, [])
    assert all(
        "system\nYou are a smith of tunes.<" in text
        for text in texts_of(load_tokenizer(base.folder), load_rows(run.data)[0])
    )


def test_no_supervised_token_says_why(tmp_path, base):
    path = write_rows(tmp_path / "x.jsonl", [[f"Only a question {n}"] for n in range(20)])
    with pytest.raises(
        DataError, match=r"no row with supervised tokens.*no assistant turn: 20 \(x.jsonl:1, x.jsonl:2, x.jsonl:3\)"
    ):
        prepare(recipe_of(path), Run(tmp_path / "run"), base, [])
    assert not (tmp_path / "run" / "data").exists()


def test_a_held_out_set_that_would_be_empty_says_what_to_write(tmp_path, base):
    path = write_rows(tmp_path / "x.jsonl", CHATS)
    with pytest.raises(DataError, match=r"0.01 of 60 different conversations.*\n.*write 0.017 or more"):
        prepare(recipe_of(path, held_out=0.01), Run(tmp_path / "run"), base, [])
    same = write_rows(tmp_path / "same.jsonl", CHATS[:1] * 50)
    with pytest.raises(DataError, match="of 1 different conversations that 50 rows hold"):
        prepare(recipe_of(same), Run(tmp_path / "run"), base, [])
    long = write_rows(tmp_path / "long.jsonl", [["a", "b" * 3000]])
    with pytest.raises(DataError, match=r"is left to hold out.*longer than max_length: 1"):
        prepare(recipe_of(path, held_out={"path": str(long)}), Run(tmp_path / "run"), base, [])


def test_a_template_that_hides_answers_is_refused_with_an_example(tmp_path):
    template = tokenizer_of("chatml").chat_template.replace("message['content']", "message['content'][:12]")
    save_tokenizer(tmp_path / "base", template=template)
    base = LocatedBase("bad", tmp_path / "base", "digest", None, None)
    path = write_rows(tmp_path / "x.jsonl", [*CHATS, ["x", "word " * 9], ["y", "word " * 8]])
    with pytest.raises(DataError, match=r"in 2 of 62 conversations.*Example: x.jsonl:61: the answers cannot be found"):
        prepare(recipe_of(path), Run(tmp_path / "run"), base, [])
    run = Run(tmp_path / "one")
    prepare(recipe_of(write_rows(tmp_path / "x.jsonl", [*CHATS, ["x", "word " * 9]])), run, base, [])
    assert read_record(run.data).counts["dropped"] == {"the answers cannot be found in the rendered text": 1}


def test_a_token_that_the_base_has_no_embedding_for(tmp_path):
    """The tokenizer may know more tokens than the model; version 0.1 found out in training, by an IndexError."""
    tokenizer = save_tokenizer(tmp_path / "base")
    size = len(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({"vocab_size": size}))
    base, run = LocatedBase("tiny", tmp_path / "base", "digest", None, None), Run(tmp_path / "run")
    path = write_rows(tmp_path / "x.jsonl", [*CHATS, ["a", "an <extra> token"]])
    counts = prepare(recipe_of(path), run, base, [])[0].counts
    assert counts["dropped"] == {"a token beyond the base's embeddings": 1} and counts["kept"] == 60
    assert counts["examples"] == {"a token beyond the base's embeddings": ["x.jsonl:61"]}
    assert load_rows(run.data)[0].tokens_T.max() < size
    path = write_rows(tmp_path / "y.jsonl", [*CHATS, ["a", "an <extra> token"], ["an <extra>", "b"]])
    expected = rf"no embeddings for in 2 of 62 .*y.jsonl:61: .*'<extra>' is token {size}, .*last .* {size - 1}\n.*fix: "
    with pytest.raises(DataError, match=expected):
        prepare(recipe_of(path), Run(tmp_path / "other"), base, [])
    config.write_text(json.dumps({"text_config": {"vocab_size": size + 1}}))
    assert prepare(recipe_of(path), Run(tmp_path / "more"), base, [])[0].counts["kept"] == 62
    config.write_text("{}")
    with pytest.raises(BaseError, match=r"config.json has no vocab_size"):
        prepare(recipe_of(path), Run(tmp_path / "none"), base, [])


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system.') }}{% endif %}" + CHATML


def test_a_template_without_system_prompts_says_what_to_take_out(tmp_path):
    save_tokenizer(tmp_path / "base", template=NO_SYSTEM)
    base = LocatedBase("tiny", tmp_path / "base", "digest", None, None)
    path = write_rows(tmp_path / "x.jsonl", CHATS)
    with pytest.raises(DataError, match=r"takes no system prompt: No system.\n  fix: remove chat.system"):
        prepare(recipe_of(path, chat={"system": "Be kind."}), Run(tmp_path / "a"), base, [])
    assert prepare(recipe_of(path), Run(tmp_path / "b"), base, [])[0].counts["kept"] == 60
    rows = [json.loads(line) | {"system": "Be kind."} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, rows)))
    expected = r"takes no system prompt, which 60 of 60 conversations have.*\n  fix: take the system prompts out"
    with pytest.raises(DataError, match=expected):
        prepare(recipe_of(path), Run(tmp_path / "c"), base, [])


def test_a_template_that_refuses_rows_says_so(tmp_path):
    template = "{% if messages | length > 4 %}{{ raise_exception('long') }}{% endif %}" + CHATML
    save_tokenizer(tmp_path / "base", template=template)
    base = LocatedBase("tiny", tmp_path / "base", "digest", None, None)
    path = write_rows(tmp_path / "x.jsonl", [chat * 3 for chat in CHATS])
    expected = r"the chat template refuses 60 of 60 conversations.*refuses it: long.*\n  fix: correct these rows"
    with pytest.raises(DataError, match=expected):
        prepare(recipe_of(path), Run(tmp_path / "run"), base, [])


@pytest.mark.parametrize(
    ("positions", "words", "max_tokens", "said"),
    [
        (None, 4100, 8, "evaluate holds 4096"),
        (None, 4100, 3500, None),  # a long answer brings more room
        (None, 3000, 3500, None),
        (1000, 1010, 200, "the base holds 1000"),
        (1000, 20, 1000, None),  # the answer is cut where the base ends
    ],
)
def test_a_prompt_that_evaluation_cannot_hold_is_refused_before_training(tmp_path, positions, words, max_tokens, said):
    save_tokenizer(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(
        json.dumps({"vocab_size": 10_000, "max_position_embeddings": positions or 10**6})
    )
    base = LocatedBase("tiny", tmp_path / "base", "digest", None, None)
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(["Why?", "what is " + "a " * words]))
    recipe = recipe_of(
        write_rows(tmp_path / "x.jsonl", CHATS),
        evaluate={"prompts": str(tmp_path / "prompts.yaml"), "max_tokens": max_tokens},
    )
    if said:
        refused = pytest.raises(
            RecipeError, match=rf"prompt 2 \('what is a a .*\) has \d+ tokens, and {said}: there is no"
        )
        with refused as caught:
            prepare(recipe, Run(tmp_path / "run"), base)
        more = "raise evaluate.max_tokens" if positions is None else "use a base with more positions"
        assert caught.value.fix.startswith(f"shorten the prompt, or {more}")
        recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update={"gguf": ()})})  # nothing is asked
    record, _ = prepare(recipe, Run(tmp_path / "run"), base)
    assert record.counts["read"] == len(CHATS)


def test_a_base_that_our_own_prompts_are_too_long_for_is_said_with_what_the_user_can_do(tmp_path):
    save_tokenizer(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text('{"vocab_size": 10000, "max_position_embeddings": 48}')
    base = LocatedBase("tiny", tmp_path / "base", "digest", None, None)
    recipe = recipe_of(write_rows(tmp_path / "x.jsonl", CHATS), evaluate={"max_tokens": 8})
    with pytest.raises(RecipeError, match="the base holds 48: there is no room for an answer") as caught:
        prepare(recipe, Run(tmp_path / "run"), base)
    own = "name a YAML file of shorter prompts with evaluate.prompts, or use a base with more positions"
    assert (caught.value.fix, caught.value.where) == (own, "")


def test_checkpoints_keep_their_data(tmp_path, base):
    path, run = write_rows(tmp_path / "x.jsonl", CHATS), Run(tmp_path / "run")
    first, _ = prepare(recipe_of(path), run, base, [])
    (run.checkpoints / "step-000004").mkdir(parents=True)
    assert not prepare(recipe_of(path), run, base, [])[1]
    keep_rows(recipe_of(path), run, base)
    with pytest.raises(ResumeError, match=r"train\.max_length: 2048 -> 512\n  - seed: 0 -> 3\n.*--run-dir") as error:
        keep_rows(recipe_of(path, train={"max_length": 512}, seed=3), run, base)
    assert "--fresh" in error.value.fix and error.value.where == str(run.checkpoints)
    write_rows(path, CHATS[1:])
    with pytest.raises(ResumeError, match=r"data: .*x\.jsonl has other rows"):
        keep_rows(recipe_of(path), run, base)
    assert read_record(run.data) == first


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ("x.jsonl", "there is no file"),
        ("gone/*.jsonl", "there is no file"),
        ("empty", "is a folder"),
        (__file__, "other data"),
    ],
)
def test_files_that_are_gone_are_no_other_data(tmp_path, base, now, said):
    path, run = write_rows(tmp_path / "x.jsonl", CHATS), Run(tmp_path / "run")
    prepare(recipe_of(path), run, base, [])
    (run.checkpoints / "step-000004").mkdir(parents=True)
    path.rename(tmp_path / "y.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResumeError if said == "other data" else DataError, match=said) as caught:
        keep_rows(recipe_of(tmp_path / now), run, base)
    assert said == "other data" or "checkpoints" not in str(caught.value)


def test_rows_of_an_unfinished_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="run `tunesmith prepare` first"):
        load_rows(tmp_path / "data")


def test_supervised_tokens_are_the_answers(tmp_path, base):
    path, run = write_rows(tmp_path / "x.jsonl", CHATS), Run(tmp_path / "run")
    prepare(recipe_of(path), run, base, [])
    tokenizer, train = load_tokenizer(base.folder), load_rows(run.data)[0]
    rows = pyarrow.parquet.read_table(run.data / "rows.parquet").to_pylist()

    class Encoded:
        ids = train.tokens_T[: train.offsets_N1[-1]].tolist()
        supervised = train.supervised_T[: train.offsets_N1[-1]].tolist()

    answers = [m["content"] for row in rows[: len(train)] for m in row["messages"] if m["role"] == "assistant"]
    assert supervised_texts(tokenizer, Encoded) == [f"{answer}<|im_end|>" for answer in answers]
