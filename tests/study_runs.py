"""Run folders as the stages leave them, with numbers of one's choice, for tests of compare."""

import json

from training_runs import prepare_rows

from tunesmith.decides import adapter_needs, data_settings, evaluation_needs, gguf_needs, model_needs
from tunesmith.evaluation.speeds import SPEEDS, summary
from tunesmith.files import digest_folder, write_file
from tunesmith.recipe_file import dump_recipe
from tunesmith.record import Proof
from tunesmith.runs import commit_stage

MEASURED = {
    "session": "one",
    "measured_at": "2026-01-02T03:04:05+00:00",
    "processor": "Test CPU",
    "threads": 2,
    "xllamacpp": "2026.10.11549",
}
PROMPTS = ("What is a step?", "Name <b>one</b> optimizer.")
PROOF = Proof("F16 = merged, mean KL in nats", 1.7e-5, 1e-4, 64)
SKIPPED = Proof("merged = adapter, logits in fp32", None, 1e-3, 0, "the model does not fit into memory in fp32")


def finished_run(path, base_folder, recipe, *, loss=2.0, held_out=6, speed=70.0, proofs=(PROOF,), **counts):
    """A run with data, adapter, model, GGUF and evaluation, all of one piece. Returns its folder.

    `speed`: tokens/s of the answers, which vary by 10 %; `more`: text after the first answer; `counts`: more of the
    adapter's record.
    """
    more = counts.pop("more", "")
    run = prepare_rows(path, base_folder, held_out=held_out)
    change(run.data, lambda record: {"settings": data_settings(recipe), "inputs": {"base": "digest"}})
    write_file(run.recipe, dump_recipe(recipe))
    counts = {
        "held_out_loss": loss, "base_held_out_loss": 3.0, "bits_per_byte": loss / 3, "base_bits_per_byte": 1.0,
        "precision": "fp32", "tokens": 12345, "train_seconds": 321.0, "device": "CPU", "peak_memory_bytes": 10**12,
    } | counts  # fmt: skip
    commit_stage(run.adapter, *adapter_needs(recipe, run, "digest"), lambda draft: _adapter(draft, loss) or counts)
    commit_stage(run.model, *model_needs(recipe, run, "digest"), lambda draft: _adapter(draft, loss) or {})
    commit_stage(run.gguf, *gguf_needs(recipe, run, "digest"), _proved, lambda _: proofs)
    lines = [{"step": 0, "held_out_loss": 3.0, "bits_per_byte": 1.0}]
    lines += [{"step": n, "loss": 3.0 - n * 0.1, "lr": 1e-4} for n in range(1, 11)]
    lines += [{"step": 10, "held_out_loss": loss, "bits_per_byte": loss / 3}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def evaluated(draft):
        for prefix, of in (("", speed), ("base-", 70.0)):
            answers = [
                speeds_of(of, n)
                | {"prompt": prompt, "text": f"{prefix}answer {n} <i>", "stopped": n == 0, "tokens": 30}
                for n, prompt in enumerate(PROMPTS)
            ]  # fmt: skip
            answers[0]["text"] += more
            (draft / f"{prefix}answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
            scores = summary(answers) | MEASURED | {"peak_memory_bytes": 250_000_000, "gguf": "Q8_0"}
            scores["file_bytes"] = 145_000_000 + len(prefix) + int(of)  # differences that are not written
            (draft / f"{prefix}scores.json").write_text(json.dumps(scores))
        return {}

    commit_stage(run.evaluation, *evaluation_needs(recipe, run, "digest"), evaluated)
    return path


def speeds_of(tokens_per_s, number):
    """The speeds of one answer, between 95 % and 105 %."""
    share = (0.95, 1.05)[number % 2]
    return dict(zip(SPEEDS, (0.1 / share, 300.0 * share, tokens_per_s * share), strict=True))


def change(folder, how):
    """Change the record of a stage as `how`, which is given it, says."""
    path = folder / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | how(record)))


def change_json(path, **values):
    """Change values of a JSON file that a record lists, and the record with it; None takes one out."""
    held = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in held.items() if value is not None}))
    change(
        path.parent, lambda record: {"outputs": record["outputs"] | {path.name: digest_folder(path.parent)[path.name]}}
    )


def _adapter(draft, loss):
    (draft / "weights").write_text(str(loss))


def _proved(draft):
    against = {"mean_kl": 1.7e-5, "top1": 1.0}
    quantised = {
        "against_model": against,
        "against_F16": {"mean_kl": 0.062, "top1": 0.953},
        "tensor_types": {"Q5_0": 166},
    }
    held_out = {"loss": 2.12345, "bits_per_byte": 0.7654, "positions": 2012, "rows": 30}
    files = {
        "F16": {"bytes": 271_000_000, "against_model": against, "tensor_types": {"F16": 211}, "fallbacks": 0},
        "Q4_K_M": quantised | {"bytes": 105_000_000, "fallbacks": 166, "held_out": held_out},
    }
    (draft / "proof.json").write_text(json.dumps(files))
    return {}
