"""A folder as a source: one that `datasets` wrote, one laid out as on the Hub, and any other."""

import json
from pathlib import Path

import datasets
import pytest

from tunesmith.data.read import conversations
from tunesmith.data_files import kind_of
from tunesmith.decides import data_settings, source_digest, source_files
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe, Source


def rows(*answers):
    return [{"prompt": "q", "completion": answer} for answer in answers]


def answers(folder, **source):
    return [(row.where, row.turns[1].text) for row in conversations(Source(path=str(folder), **source))]


def names(folder, **source):
    return [path.relative_to(folder).as_posix() for path in source_files(Source(path=str(folder), **source))]


def put(folder, *files):
    """Files below a folder, each with one row whose answer is the file's name, or with no row."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows(name)[0]) + "\n" if kind_of(path).suffix else "text")


def test_every_file_of_a_known_kind_is_read_and_the_others_are_named(tmp_path, capsys):
    put(tmp_path, "b.jsonl", "a/c.ndjson", "a/b.JSON", "notes.txt", "a/more.pdf")
    put(tmp_path, ".hidden.jsonl", ".git/x.json", "._b.json")
    put(tmp_path, "runs/one/manifest.json", "runs/one/metrics.jsonl", "runs/one/data/rows.jsonl")
    put(tmp_path, *(f"z{number}.md" for number in range(9)))
    found = [("a/b.JSON:1", "a/b.JSON"), ("a/c.ndjson:1", "a/c.ndjson"), ("b.jsonl:1", "b.jsonl")]
    assert answers(tmp_path) == found
    said = capsys.readouterr().err
    assert "files of a run: runs/one/; of no known kind: a/more.pdf, notes.txt, z0.md, z1.md, z2.md and 6 more" in said
    assert said.count("not read") == 1


@pytest.mark.parametrize(
    ("files", "source", "found"),
    [
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"], {},
         ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]),
        (["data/train-00000-of-00001.jsonl", "data/train_sft-00000-of-00001.jsonl"], {"split": "train_sft"},
         ["data/train_sft-00000-of-00001.jsonl"]),
        (["train.jsonl.gz", "my-test.jsonl", "extra.json"], {}, ["train.jsonl.gz"]),
        (["train.jsonl", "dev.csv"], {"split": "validation"}, ["dev.csv"]),
        (["test/a.jsonl", "train/a.jsonl"], {"split": "test"}, ["test/a.jsonl"]),
        (["chats.jsonl", "test.jsonl"], {}, ["chats.jsonl"]),
        (["latest.jsonl", "constraint.jsonl"], {}, ["constraint.jsonl", "latest.jsonl"]),  # no words of their own
        (["en/train.jsonl", "de/train.jsonl"], {"config": "en"}, ["en/train.jsonl"]),
        (["a.jsonl", "dataset_infos.json"], {}, ["a.jsonl"]),
    ],
)  # fmt: skip
def test_a_split_is_chosen_by_the_names_of_files(tmp_path, files, source, found):
    put(tmp_path, *files)
    assert names(tmp_path, **source) == found


@pytest.mark.parametrize(
    ("files", "source", "said"),
    [
        (["README.md", "x.txt"], {}, "is a folder that holds only README.md, x.txt\n  fix: name one with files"),
        (["train.jsonl", "dev.jsonl"], {"split": "test"}, "has no split test\n  fix: .*split: train, validation"),
        (["train.jsonl"], {"split": "train[:10]"}, r"has no split train\[:10\]\n.* here it is `limit`"),
        (["en/train.jsonl", "de/train.jsonl"], {"config": "fr"}, "has no config fr\n.*config: de, en"),
    ],
)  # fmt: skip
def test_what_a_folder_does_not_have(tmp_path, files, source, said):
    put(tmp_path, *files)
    with pytest.raises(DataError, match=said):
        answers(tmp_path, **source)


README = """---
license: mit
configs:
- config_name: main
  data_files:
  - {split: train, path: "main/tr*.jsonl"}
  - {split: test, path: [main/test.jsonl]}
- config_name: other
  data_files: other/*.jsonl
---
# Text
"""


def test_the_configs_of_a_copy_of_the_hub_are_those_of_its_readme(tmp_path):
    put(tmp_path, "main/train.jsonl", "main/test.jsonl", "other/a.jsonl", "c.jsonl")
    (tmp_path / "README.md").write_text(README)
    assert names(tmp_path, config="main") == ["main/train.jsonl"]
    assert names(tmp_path, config="main", split="test") == ["main/test.jsonl"]
    assert names(tmp_path, config="other") == ["other/a.jsonl"]
    for source, said in (
        ({}, "has several configs\n.*config: main, other"),
        ({"config": "x"}, "has no config x\n.*config: main, other"),
        ({"config": "other", "split": "test"}, "has no split test\n.*split: train"),
    ):
        with pytest.raises(DataError, match=said):
            names(tmp_path, **source)
    (tmp_path / "other" / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no file other/\*.jsonl, as its README.md says"):
        names(tmp_path, config="other")
    (tmp_path / "README.md").write_text(README.replace("- config_name: other\n  data_files: other/*.jsonl\n", ""))
    assert names(tmp_path) == ["main/train.jsonl"]


def test_what_datasets_saved_is_read_as_it_reads_it(tmp_path):
    train, test = rows(*map(str, range(2500))), rows("t")
    saved = {name: datasets.Dataset.from_list(part) for name, part in (("train", train), ("test", test))}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "both", num_shards={"train": 2, "test": 1})
    saved["test"].save_to_disk(tmp_path / "one")
    assert [answer for _, answer in answers(tmp_path / "both")] == [row["completion"] for row in train]
    assert answers(tmp_path / "both", split="test") == [("test/data-00000-of-00001.arrow:1", "t")]
    assert answers(tmp_path / "one") == [("data-00000-of-00001.arrow:1", "t")]
    with pytest.raises(DataError, match=r"has no split x\n.*split: test, train"):
        answers(tmp_path / "both", split="x")
    (tmp_path / "one" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"one lacks data-00000-of-00001.arrow, which its state.json names"):
        answers(tmp_path / "one")


def test_a_folder_is_known_by_the_bytes_of_its_files(tmp_path):
    put(tmp_path / "a", "train.jsonl", "test.jsonl")
    source = Source(path=str(tmp_path / "a"))
    assert source_digest(source) == source_digest(Source(path=str(tmp_path / "a" / "train.jsonl")))
    before = source_digest(source)
    put(tmp_path / "a", "notes.txt")
    (tmp_path / "a").rename(tmp_path / "b")
    assert source_digest(Source(path=str(tmp_path / "b"))) == before
    put(tmp_path / "b", "train-2.jsonl")
    assert source_digest(Source(path=str(tmp_path / "b"))) != before


def test_how_rows_come_is_no_setting_of_theirs():
    def settings(**source):
        one = {"path": "o/rows", **source}
        return data_settings(
            Recipe.model_validate({"name": "n", "base": "b", "data": {"sources": [one], "held_out": one}})
        )

    assert settings(streaming=True) == settings()
    assert settings(config="x") != settings()


def test_a_path_of_a_folder_may_end_in_a_slash(tmp_path):
    put(tmp_path, "a.jsonl")
    assert answers(f"{tmp_path}/") == [("a.jsonl:1", "a.jsonl")]
    assert names(Path(tmp_path)) == ["a.jsonl"]
