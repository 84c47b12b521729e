"""Run folders as the stages leave them, with numbers of one's choice, for tests of evaluate and compare."""

import json

from training_runs import prepare_rows

from tunesmith.files import write_file
from tunesmith.recipe_file import dump_recipe
from tunesmith.runs import commit_stage

SPEEDS = {"first_token_s": 0.1, "prompt_per_s": 300.0, "tokens_per_s": 70.0}
KEPT = {
    "peak_memory_bytes": 250_000_000,
    "file_bytes": 145_000_000,
    "gguf": "Q8_0",
    "threads": 2,
    "processor": "Test CPU",
}
PROMPTS = ("What is a step?", "Name <b>one</b> optimizer.")


def finished_run(path, base_folder, recipe, *, loss=2.0, held_out=6, tokens_per_s=70.0):
    """A run with data, adapter, proof, metrics and evaluation. Returns its folder."""
    base_loss = 3.0
    run = prepare_rows(path, base_folder, held_out=held_out)
    write_file(run.recipe, dump_recipe(recipe))
    counts = {
        "held_out_loss": loss, "base_held_out_loss": base_loss, "bits_per_byte": loss / 3,
        "base_bits_per_byte": base_loss / 3,
        "tokens": 12345, "train_seconds": 321.0, "device": "CPU", "peak_memory_bytes": 10**12,
    }  # fmt: skip
    commit_stage(run.adapter, {}, {}, lambda draft: counts)
    commit_stage(run.gguf, {}, {}, _proof)
    lines = [{"step": 0, "held_out_loss": base_loss, "bits_per_byte": base_loss / 3}]
    lines += [{"step": n, "loss": base_loss - n * 0.1, "lr": 1e-4} for n in range(1, 11)]
    lines += [{"step": 10, "held_out_loss": loss, "bits_per_byte": loss / 3}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def evaluated(draft):
        for prefix, value in (("", loss), ("base-", base_loss)):
            answers = [
                SPEEDS | {"prompt": prompt, "text": f"{prefix}answer {n} <i>", "stopped": n == 0, "tokens": 30}
                for n, prompt in enumerate(PROMPTS)
            ]  # fmt: skip
            (draft / f"{prefix}answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
            scores = SPEEDS | KEPT | {"held_out_loss": value, "bits_per_byte": value / 3, "tokens_per_s": tokens_per_s}
            scores["file_bytes"] += len(prefix) + int(tokens_per_s)  # differences that are not written
            (draft / f"{prefix}scores.json").write_text(json.dumps(scores))
        return {}

    commit_stage(run.evaluation, {}, {}, evaluated)
    return path


def _proof(draft):
    against = {"mean_kl": 1.7e-5, "top1": 1.0}
    quantised = {
        "against_model": against,
        "against_F16": {"mean_kl": 0.062, "top1": 0.953},
        "tensor_types": {"Q5_0": 166},
    }
    files = {
        "F16": {"bytes": 271_000_000, "against_model": against, "tensor_types": {"F16": 211}, "fallbacks": 0},
        "Q4_K_M": quantised | {"bytes": 105_000_000, "fallbacks": 166},
    }
    (draft / "proof.json").write_text(json.dumps(files))
    return {}
