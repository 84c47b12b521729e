"""One way from a JSONL file to token rows, for benchmarks/data.py, which runs this in a process of its own.

    python benchmarks/data_ways.py WAY DATA BASE PLACE

The last line it prints is JSON: seconds, stages, and what the way has to say. Imports are not timed.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import near
import pyarrow.parquet
from datasets import Features, Sequence, Value, load_dataset
from transformers import AutoTokenizer

from tunesmith.data.conversation import Conversation
from tunesmith.data.read import conversations
from tunesmith.machine import usable_cores
from tunesmith.recipe import Recipe, Source
from tunesmith.runs import Run
from tunesmith.tokens.laps import timed
from tunesmith.tokens.prepare import prepare
from tunesmith.weights.locate import LocatedBase

ROLES = {"human": "user", "gpt": "assistant"}
BATCH = 1000


def prepared(data: Path, base: Path, place: Path) -> dict[str, Any]:
    """Ours."""
    recipe = Recipe(name="speed", base="speed", data={"sources": [{"path": str(data)}], "held_out": 0.01})
    run, located = Run(place / "run"), LocatedBase("speed", base, "digest", None, None)
    started, started_cpu = time.monotonic(), cpu_s()
    with timed() as stages:
        record, _ = prepare(recipe, run, located)
    seconds, spent = time.monotonic() - started, cpu_s() - started_cpu
    prepare(recipe, run, located)
    again_s = time.monotonic() - started - seconds
    truth = truth_of(data)
    kept = set(pyarrow.parquet.read_table(run.data / "rows.parquet", columns=["where"])["where"].to_pylist())
    found = [not all(f"{data.name}:{pair[key]}" in kept for key in ("row", "of")) for pair in truth]
    counts = record.counts
    return {
        "seconds": seconds, "cpu_s": spent, "stages": stages, "tokens": counts["tokens"],
        "kept": counts["kept"],
        "again_s": again_s, "planted": len(truth), "planted_found": sum(found),
    }  # fmt: skip


def truth_of(data: Path) -> list[dict[str, int]]:
    """The rows that were planted, counted from 1, each with the row that it is nearly."""
    return [json.loads(line) for line in data.with_suffix(".truth.jsonl").read_text().splitlines()]


def clustered(data: Path, base: Path, place: Path, *, ours: bool) -> dict[str, Any]:
    """The step for near duplicates alone, in one process, from conversations to clusters."""
    rows = [row for row in conversations(Source(path=str(data))) if isinstance(row, Conversation)]
    started, started_cpu = time.monotonic(), cpu_s()
    found = near.ours(rows, place / "shingles") if ours else near.by_datasketch(rows, verified=True)
    seconds, spent = time.monotonic() - started, cpu_s() - started_cpu
    planted = truth_of(data)
    same = sum(found[pair["row"] - 1] == found[pair["of"] - 1] for pair in planted)
    return {"seconds": seconds, "cpu_s": spent, "stages": {}, "planted": len(planted), "planted_found": same}


def encoded(data: Path, base: Path, place: Path) -> dict[str, Any]:
    """The least there is to do: the rendered texts to ids, with all cores."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    seconds, spent, tokens, texts = 0.0, 0.0, 0, list[str]()
    with data.open() as file:
        for number, line in enumerate(file, 1):
            texts.append(tokenizer.apply_chat_template(_messages(json.loads(line)), tokenize=False))
            if number % BATCH == 0:
                more = _timed(tokenizer, texts)
                tokens, seconds, spent = tokens + more[0], seconds + more[1], spent + more[2]
                texts = []
    more = _timed(tokenizer, texts)
    return {"seconds": seconds + more[1], "cpu_s": spent + more[2], "stages": {}, "tokens": tokens + more[0]}


def _timed(tokenizer: Any, texts: list[str]) -> tuple[int, float, float]:
    started, started_cpu = time.monotonic(), cpu_s()
    found = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return sum(len(one) for one in found), time.monotonic() - started, cpu_s() - started_cpu


def cpu_s() -> float:
    """Of this process, its threads, and the processes it started that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def mapped(data: Path, base: Path, place: Path, *, prefixes: bool) -> dict[str, Any]:
    """`datasets.map` as users write it: no proof, no duplicates, no report."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    said = "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    answer = "{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    other = "{{ message['content'] | trim + '<|eot_id|>' }}"
    marked = (
        "{{ bos_token }}{% for message in messages %}" + said + "{% if message['role'] == 'assistant' %}" + answer
        + "{% else %}" + other + "{% endif %}{% endfor %}"
    )  # fmt: skip
    make = partial(_by_prefixes if prefixes else _by_mask, tokenizer=tokenizer, template=None if prefixes else marked)
    started, started_cpu = time.monotonic(), cpu_s()
    rows = load_dataset("json", data_files=str(data), split="train", cache_dir=str(place))
    read_s = time.monotonic() - started
    features = Features({"input_ids": Sequence(Value("int32")), "mask": Sequence(Value("int8"))})
    made = rows.map(make, num_proc=usable_cores(), remove_columns=rows.column_names, features=features)
    seconds = time.monotonic() - started
    stages = {"read": read_s, "map": seconds - read_s}
    return {"seconds": seconds, "cpu_s": cpu_s() - started_cpu, "stages": stages, "kept": len(made)}


def _by_mask(row: dict[str, Any], *, tokenizer: Any, template: str) -> dict[str, Any]:
    """TRL with assistant_only_loss."""
    made = tokenizer.apply_chat_template(
        _messages(row), chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    return {"input_ids": made["input_ids"], "mask": made["assistant_masks"]}


def _by_prefixes(row: dict[str, Any], *, tokenizer: Any, template: None) -> dict[str, Any]:
    """Each answer found by the length of the tokens before it, for templates without generation marks."""
    messages = _messages(row)
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    mask = [0] * len(ids)
    for number in range(1, len(messages), 2):
        before = tokenizer.apply_chat_template(messages[:number], add_generation_prompt=True, return_dict=True)
        up_to = tokenizer.apply_chat_template(messages[: number + 1], return_dict=True)
        start, stop = len(before["input_ids"]), len(up_to["input_ids"])
        mask[start:stop] = [1] * (stop - start)
    return {"input_ids": ids, "mask": mask}


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]


WAYS = {
    "encode_batch": encoded,
    "prepare": prepared,
    "near duplicates alone": partial(clustered, ours=True),
    "near duplicates alone, datasketch": partial(clustered, ours=False),
    "datasets.map, prefixes": partial(mapped, prefixes=True),
    "datasets.map, generation mask": partial(mapped, prefixes=False),
}

if __name__ == "__main__":
    print(json.dumps(WAYS[sys.argv[1]](*map(Path, sys.argv[2:]))))
