"""A project as a user has it, on the tiny base: a recipe file that every stage does in seconds."""

from tiny import write_rows
from training_runs import conversations


def write_project(folder, base, **replaced):
    """Write rows.jsonl, prompts.yaml and recipe.yaml (`replaced`: lines of it by their key). The recipe's path."""
    rows = [[turn.text for turn in conversation.turns] for conversation in conversations(16)]
    write_rows(folder / "rows.jsonl", rows)
    (folder / "prompts.yaml").write_text("- What is a step?\n- Why is the sky blue?\n")
    lines = {
        "name": "small",
        "base": str(base),
        "data": "{sources: [{path: rows.jsonl}], held_out: 0.25}",
        "lora": "{rank: 4}",
        "train": "{tokens_per_step: 400, max_length: 200, epochs: 3, lr: 1e-2, precision: fp32,"
        " evaluate_every: 2 steps, early_stopping: null}",
        "export": "{gguf: [Q8_0], positions: 4}",
        "evaluate": "{prompts: prompts.yaml, max_tokens: 8, threads: 1}",
    } | replaced
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path
