"""Training speed on this CPU against TRL, same conversations, model, LoRA and numbers (fp32), in one run.

Each side is a process of its own (peak memory is its own) and trains in turn; TRL with checkpointing off and its
metrics as they come, once with its default collator (padding) and once packed. Padding is not counted as tokens.

Usage: python benchmarks/training.py [--steps N] [--rounds N]   (needs the `dev` extra)
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).parents[1] / "recipes" / "demo-data"
BASE, SYSTEM = "builtin:smollm2-135m-instruct", None
MAX_LENGTH, RANK = 512, 16


def rows():
    """The demo conversations as TRL takes them."""
    roles = {"human": "user", "gpt": "assistant"}
    for name in ("tunesmith.jsonl", "finetuning.jsonl"):
        for line in (DATA / name).read_text().splitlines():
            turns = json.loads(line)["conversations"]
            yield {"messages": [{"role": roles[t["from"]], "content": t["value"]} for t in turns]}


def ours(steps):
    """tokens, seconds of `steps` optimizer steps of 1024 tokens after two to warm up."""
    from tunesmith.recipe import Recipe
    from tunesmith.runs import Run
    from tunesmith.stages import read_prompts
    from tunesmith.tokens.prepare import prepare
    from tunesmith.training.loop import train
    from tunesmith.training.stop import Paused
    from tunesmith.weights.locate import locate_base

    sources = [{"path": str(DATA / name)} for name in ("tunesmith.jsonl", "finetuning.jsonl")]
    train_settings = {
        "tokens_per_step": 1024, "max_length": MAX_LENGTH, "micro_batch_tokens": 1024, "precision": "fp32",
        "stop_after": f"{steps + 2} steps", "evaluate_every": "1000 steps", "epochs": 9,
    }  # fmt: skip
    recipe = Recipe(
        name="speed", base=BASE, data={"sources": sources}, lora={"rank": RANK}, train=train_settings,
        checkpoint={"every": "1000 steps"},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run, base = Run(Path(folder)), locate_base(BASE)
        prepare(recipe, run, base, read_prompts(recipe))
        with contextlib.suppress(Paused):
            train(recipe, run, base)
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    timed = [line for line in lines if "loss" in line][2:]
    return sum(line["tokens"] for line in timed), sum(line["seconds"] for line in timed)


def trl(steps, packing):
    """The same with TRL: 8 rows padded, or packed rows of 1024 tokens; loss on all tokens, as it does by default."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tunesmith.weights.locate import locate_base

    folder, times, tokens = locate_base(BASE).folder, [], []

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
        train_dataset=Dataset.from_list(list(rows())), processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear"), callbacks=[Clock()],
    )  # fmt: skip
    collate = trainer.data_collator

    def counted(batch):
        tokens.append(sum(len(row["input_ids"]) for row in batch))
        return collate(batch)

    trainer.data_collator = counted
    trainer.train()
    return sum(tokens[2 : 2 + steps]), sum(times[2:])


def measure(side, steps):
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Measure each side in turn and print the table of medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=["tunesmith", "trl", "trl-packed"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.side:
        tokens, seconds = (
            ours(options.steps) if options.side == "tunesmith" else trl(options.steps, "packed" in options.side)
        )
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps({"tokens_per_s": tokens / seconds, "peak_gb": peak_gb}))
        return
    sides = {"tunesmith": [], "trl-packed": [], "trl": []}
    for _ in range(options.rounds):
        for side, measured in sides.items():
            measured.append(measure(side, options.steps))
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
