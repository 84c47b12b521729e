"""Training speed on this CPU against TRL, same conversations, model, LoRA and numbers (fp32), in one run.

Each side is a process of its own (peak memory is its own) and trains in turn; TRL with checkpointing off and its
metrics as they come, once with its default collator (padding) and once packed. Padding is not counted as tokens.

Usage: python benchmarks/training.py [--data demo|FOLDER] [--steps N] [--rounds N]
TRL comes with: pip install -c constraints.txt -e .[bench]
FOLDER holds instruction data; 80 rows of each file of MIXED are drawn, and those of at most 512 tokens used.
"""

import argparse
import contextlib
import importlib.util
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

DEMO = [Path(__file__).parents[1] / "recipes" / "demo-data" / name for name in ("tunesmith.jsonl", "finetuning.jsonl")]
MIXED = (
    "fastchat_500_sharegpt.json", "gsm8k_train_7473_sharegpt.jsonl", "gpteacher_roleplay_1923_alpaca_response.json",
    "dolly_151.jsonl", "rasbt_1100_alpaca.json",
)  # fmt: skip
COLUMNS = {"gpteacher": {"output": "response"}, "dolly": {"completion": "answer"}}
BASE = "builtin:smollm2-135m-instruct"
MAX_LENGTH, RANK = 512, 16


def write_rows(data, target):
    """The conversations of both sides as a file of messages: clean ones of at most MAX_LENGTH tokens."""
    from tunesmith.data.clean import clean
    from tunesmith.data.conversation import Conversation
    from tunesmith.data.read import conversations
    from tunesmith.gguf.read import convert
    from tunesmith.recipe import Source
    from tunesmith.tokens.mask import Encoded, encode_all
    from tunesmith.tokens.messages import messages_of
    from tunesmith.tokens.tokenizer import load_tokenizer
    from tunesmith.weights.locate import locate_base

    drawn = []
    for path in DEMO if data == "demo" else [Path(data) / name for name in MIXED]:
        columns = next((c for start, c in COLUMNS.items() if path.name.startswith(start)), {})
        rows = [row for row in conversations(Source(path=str(path), columns=columns)) if isinstance(row, Conversation)]
        rows = [row for row, _ in map(clean, rows) if isinstance(row, Conversation)]
        random.Random(0).shuffle(rows)
        drawn += rows if data == "demo" else rows[:80]
    encoded = encode_all(load_tokenizer(locate_base(BASE, convert).folder), drawn, system=None, date="2026-01-01")
    pairs = [(row, len(e.ids)) for row, e in zip(drawn, encoded, strict=True) if isinstance(e, Encoded)]
    pairs = [(row, length) for row, length in pairs if length <= MAX_LENGTH]
    target.write_text("".join(json.dumps({"messages": messages_of(row.turns)}) + "\n" for row, _ in pairs))
    lengths = sorted(length for _, length in pairs)
    middle = lengths[len(lengths) // 2]
    print(f"{len(lengths)} conversations, {sum(lengths)} tokens, median {middle}, longest {lengths[-1]}")


def ours(steps, file):
    """tokens, seconds of `steps` optimizer steps of 1024 tokens after two to warm up."""
    from tunesmith.decides import read_prompts
    from tunesmith.gguf.read import convert
    from tunesmith.recipe import Recipe
    from tunesmith.runs import Run
    from tunesmith.tokens.prepare import prepare
    from tunesmith.training.stop import Paused
    from tunesmith.training.train import train
    from tunesmith.weights.locate import locate_base

    train_settings = {
        "tokens_per_step": 1024, "max_length": MAX_LENGTH, "micro_batch_tokens": 1024, "precision": "fp32",
        "stop_after": f"{steps + 2} steps", "evaluate_every": "1000 steps", "epochs": 9,
    }  # fmt: skip
    recipe = Recipe(
        name="speed", base=BASE, data={"sources": [{"path": str(file)}]}, lora={"rank": RANK}, train=train_settings,
        checkpoint={"every": "1000 steps"},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run, base = Run(Path(folder)), locate_base(BASE, convert)
        prepare(recipe, run, base, read_prompts(recipe))
        with contextlib.suppress(Paused):
            train(recipe, run, base)
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    timed = [line for line in lines if "loss" in line][2:]
    return sum(line["tokens"] for line in timed), sum(line["seconds"] for line in timed)


def trl(steps, file, packing):
    """The same with TRL: 8 rows padded, or packed rows of 1024 tokens; loss on all tokens, as it does by default."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tunesmith.gguf.read import convert
    from tunesmith.weights.locate import locate_base

    folder, times, tokens = locate_base(BASE, convert).folder, [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            times.append(-time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            times[-1] += time.perf_counter()

    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=steps + 2, per_device_train_batch_size=1 if packing else 8,
        max_length=1024 if packing else MAX_LENGTH, packing=packing, gradient_checkpointing=False, bf16=False,
        use_cpu=True, report_to=[], save_strategy="no", logging_steps=1000, learning_rate=2e-4,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), args=settings,
        train_dataset=Dataset.from_list([json.loads(line) for line in file.read_text().splitlines()]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear"), callbacks=[Clock()],
    )  # fmt: skip
    collate = trainer.data_collator

    def counted(batch):
        tokens.append(sum(len(row["input_ids"]) for row in batch))
        return collate(batch)

    trainer.data_collator = counted
    trainer.train()
    return sum(tokens[2 : 2 + steps]), sum(times[2:])


def measure(side, steps, file):
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--steps", str(steps), "--file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Measure each side in turn and print the table of medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=["tunesmith", "trl", "trl-packed"])
    parser.add_argument("--file", type=Path, default=Path(tempfile.gettempdir()) / "tunesmith-benchmark.jsonl")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.side:
        work = partial(trl, packing="packed" in options.side) if options.side.startswith("trl") else ours
        tokens, seconds = work(options.steps, options.file)
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps({"tokens_per_s": tokens / seconds, "peak_gb": peak_gb}))
        return
    if importlib.util.find_spec("trl") is None:
        parser.error("TRL is not installed: pip install -c constraints.txt -e .[bench]")
    write_rows(options.data, options.file)
    sides = {"tunesmith": [], "trl-packed": [], "trl": []}
    for _ in range(options.rounds):
        for side, measured in sides.items():
            measured.append(measure(side, options.steps, options.file))
            print(side, {key: round(value, 2) for key, value in measured[-1].items()}, flush=True)
    middle = {
        side: {key: sorted(m[key] for m in measured)[len(measured) // 2] for key in measured[0]}
        for side, measured in sides.items()
    }
    print("\n| side | real tokens/s | ratio | peak GB |\n|---|---|---|---|")
    for side, median in middle.items():
        ratio = middle["tunesmith"]["tokens_per_s"] / median["tokens_per_s"]
        print(f"| {side} | {median['tokens_per_s']:.0f} | {ratio:.2f} | {median['peak_gb']:.2f} |")


if __name__ == "__main__":
    main()
