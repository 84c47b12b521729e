"""Did cleaner or chosen data help? One set raw, without duplicates, and half of it by each rule, at equal tokens.

Every arm trains the same recipe from the same base for the same number of tokens, and is measured on the same held-out
rows, which are drawn and written once. Arms: `off`, `exact` and, where this version has it, `near` are duplicates kept
or removed; `random`, `longest`, `difficulty` and `likeness` are half of the rows without duplicates. The examples of
`likeness` are drawn beside the held-out rows, unless --like names some: of one set alone it can choose little.

Usage: python benchmarks/selected.py [--base BASE] [--data FILE ...] [--rows N] [--steps N] [--seeds N] [--out FILE]
Without options: the built-in base and the demo's rows, on a CPU. An arm that fails is named and the rest goes on.
"""

import argparse
import gc
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch

from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation
from tunesmith.data.read import conversations
from tunesmith.errors import TunesmithError
from tunesmith.gguf.read import convert
from tunesmith.machine import training_device
from tunesmith.pipeline import run_stages
from tunesmith.recipe import Dedup, Recipe, Source
from tunesmith.record import read_record
from tunesmith.runs import Run
from tunesmith.stages import stage_of
from tunesmith.tokens.messages import messages_of
from tunesmith.tokens.rows import load_rows
from tunesmith.tokens.selected import selected_rows
from tunesmith.weights.locate import locate_base

DEMO = [Path(__file__).parents[1] / "recipes" / "demo-data" / name for name in ("tunesmith.jsonl", "finetuning.jsonl")]
EXAMPLES = 32
CLEAN = [kind for kind in ("off", "exact", "near") if kind in get_args(Dedup)]
RULES = ("random", "longest", "difficulty", "likeness")


def write_data(args, folder):
    """train.jsonl, held_out.jsonl and like.jsonl of rows drawn from the set; how many rows each has."""
    found = []
    for path in args.data:
        rows = (row for row in conversations(Source(path=str(path))) if isinstance(row, Conversation))
        found += [row for row, _ in map(clean, rows) if isinstance(row, Conversation) and row.is_plain]
    random.Random(0).shuffle(found)
    del found[args.rows :]
    held = max(8, round(args.held_out * len(found)))
    examples = min(EXAMPLES, held)
    parts = {
        "held_out": found[:held], "like": found[held : held + examples], "train": found[held + examples :],
    }  # fmt: skip
    for name, rows in parts.items():
        lines = [json.dumps({"messages": messages_of(row.turns)}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return {name: len(rows) for name, rows in parts.items()}


def recipe_of(args, folder, arm, seed, epochs):
    """The recipe of one arm; `epochs` is all that differs beside the rows."""
    rule = arm if arm in RULES else None
    like = {"like": args.like or str(folder / "like.jsonl")} if rule == "likeness" else {}
    data = {
        "sources": [{"path": str(folder / "train.jsonl"), "format": "messages"}],
        "held_out": {"path": str(folder / "held_out.jsonl"), "format": "messages"},
        "dedup": CLEAN[-1] if rule else arm,
        "select": {"by": rule, "keep": args.keep, **like} if rule else None,
    }
    train = {
        "epochs": epochs, "tokens_per_step": args.tokens_per_step, "max_length": args.max_length, "lr": args.lr,
        "evaluate_every": f"{max(1, args.steps // 4)} steps", "early_stopping": None, "sample": False,
    }  # fmt: skip
    return Recipe.model_validate({
        "name": f"{arm}-{seed}", "base": args.base, "data": data, "train": train, "seed": seed,
        "lora": {"rank": args.rank}, "export": {"gguf": []},
    })  # fmt: skip


def reuse(folder, run, arm, seed):
    """Rows and scores that an earlier arm made of the same: they are copied, and made anew where they do not stand."""
    rows = folder / f"{CLEAN[-1]}-{seed}" / "data"
    scores = folder / f"{arm}-0" / "scores"
    for made, place in ((rows, run.data), (scores, run.scores)):
        if arm in RULES and made.is_dir() and not place.exists():
            shutil.copytree(made, place)


def train_arm(args, folder, arm, seed):
    """One arm from rows to adapter; what it did."""
    run, started = Run(folder / f"{arm}-{seed}"), time.monotonic()
    reuse(folder, run, arm, seed)
    recipe = recipe_of(args, folder, arm, seed, 1)
    run_stages(recipe, run, [stage_of("prepare")])
    if recipe.data.select and recipe.data.select.scored:
        run_stages(recipe, run, [stage_of("score")])
    rows = load_rows(run.data)[0]
    chosen = selected_rows(recipe, run, rows)
    lengths = rows.lengths_N if chosen is None else rows.lengths_N[chosen]
    epochs = round(args.steps * args.tokens_per_step / int(lengths.sum()), 4)
    run_stages(recipe_of(args, folder, arm, seed, epochs), run, [stage_of("train")])
    counts = read_record(run.adapter).counts
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    final = [line["held_out_loss"] for line in lines if "held_out_loss" in line][-1]
    return {
        "arm": arm, "seed": seed, "rows": len(lengths), "tokens_an_epoch": int(lengths.sum()), "epochs": epochs,
        "steps": counts["steps"], "tokens": counts["tokens"], "base": counts["base_held_out_loss"], "final": final,
        "best": counts["held_out_loss"], "dropped": read_record(run.data).counts["dropped"],
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def table(results):
    """A row an arm: mean and spread over the seeds of the last and the best held-out loss."""
    lines = [
        "| arm | rows | epochs | tokens trained | last held-out loss | best | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(result["arm"] for result in results):
        of = [result for result in results if result["arm"] == arm]
        mean = {name: statistics.mean(one[name] for one in of) for name in ("final", "best", "tokens", "epochs")}
        spread = f" ± {statistics.stdev(one['final'] for one in of):.4f}" if len(of) > 1 else ""
        lines.append(
            f"| {arm} | {of[0]['rows']:,} | {mean['epochs']:.2f} | {mean['tokens']:,.0f} "
            f"| {mean['final']:.4f}{spread} | {mean['best']:.4f} | {len(of)} |"
        )
    return "\n".join(lines)


def main():
    """Every arm with every seed, the table, and the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--data", nargs="+", type=Path, default=DEMO)
    parser.add_argument("--like", help="file of examples for likeness")
    parser.add_argument("--rows", type=int, default=400, help="rows drawn from the set")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of them that is held out")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tokens-per-step", type=int, default=1024)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--arms", nargs="+", default=[*CLEAN, *RULES], choices=[*CLEAN, *RULES])
    parser.add_argument("--folder", type=Path, help="keep the runs here, and go on with those that are there")
    parser.add_argument("--out", type=Path, default=Path("selected.json"))
    args = parser.parse_args()
    results, failed = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        drawn = write_data(args, folder)
        device = training_device()
        args.base = str(locate_base(args.base, convert).folder)
        for seed in range(args.seeds):
            for arm in args.arms:
                try:
                    results.append(train_arm(args, folder, arm, seed))
                except TunesmithError as error:
                    failed.append({"arm": arm, "seed": seed, "why": error.what})
                    print(f"{arm}, seed {seed}: {error.what}")
                gc.collect()
                torch.cuda.empty_cache()
                settings = {name: str(value) for name, value in vars(args).items() if name != "folder"}
                found = {"device": device, "drawn": drawn, "settings": settings, "results": results, "failed": failed}
                args.out.write_text(json.dumps(found, indent=1) + "\n")  # after each: a machine may be taken away
    print(f"{drawn['train']:,} training rows drawn, {drawn['held_out']:,} held out; on {device}")
    if results:
        print(f"held-out loss of the base: {results[0]['base']:.4f}\n{table(results)}")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
