"""The importance matrix: mean squares of what each linear layer gets, as transformers alone computes them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_base
from training_runs import prepare_rows
from transformers import AutoModelForCausalLM

from tunesmith import machine
from tunesmith.errors import BaseError, ResourceError
from tunesmith.gguf.quantise import GAINS, UNWEIGHTED, takes_importance
from tunesmith.model import importance, streamed
from tunesmith.model.importance import FLOOR, gather_importance
from tunesmith.model.streamed import in_passes
from tunesmith.tokens.rows import load_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(Folder of a base, its training rows)."""
    place = tmp_path_factory.mktemp("importance")
    folder = save_base(place / "base", initializer_range=0.2)
    return folder, load_rows(prepare_rows(place / "run", folder).data)[0]


def damaged(folder, target, name, value):
    """A copy of the base whose weight `name` is `value` everywhere."""
    save_base(target, initializer_range=0.2)
    weights = load_file(folder / "model.safetensors")
    weights[name] = torch.full_like(weights[name], value)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def test_it_is_the_mean_square_of_what_each_layer_gets(made, monkeypatch):
    folder, rows = made
    monkeypatch.setattr(streamed, "PASS_TOKENS", 150)  # several passes, with several rows each
    found, tokens = gather_importance(folder, rows)
    assert tokens == len(rows.tokens_T[: rows.offsets_N1[-1]]) > 600  # every token of all rows, the prompts' too
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            inputs[name] = []
            module.register_forward_pre_hook(lambda _, given, name=name: inputs[name].append(given[0].flatten(0, -2)))
    with torch.no_grad():
        for row in range(len(rows)):
            model(torch.tensor(rows.tokens_T[rows.offsets_N1[row] : rows.offsets_N1[row + 1]][None]))
    assert found.keys() == inputs.keys() and len(found) == 14
    for name, parts in inputs.items():
        wanted_C = torch.cat(parts).double().square().mean(dim=0).numpy()
        np.testing.assert_allclose(found[name], wanted_C, rtol=1e-4)
    again, _ = gather_importance(folder, rows)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_the_sample_ends_and_comes_from_all_parts_of_the_data(made, monkeypatch):
    _, rows = made
    monkeypatch.setattr(importance, "TOKENS", 400)
    monkeypatch.setattr(importance, "LONGEST", 60)
    passes = list(in_passes(importance._sample(rows), len))
    ids = [row for group in passes for row in group]
    assert sum(map(len, ids)) == 400 and max(map(len, ids)) == 60
    starts = {tuple(rows.tokens_T[start : start + 60].tolist()): n for n, start in enumerate(rows.offsets_N1[:-1])}
    places = [n for row in ids for start, n in starts.items() if start[: len(row)] == tuple(row)]
    assert min(places) < len(rows) / 3 and max(places) > 2 * len(rows) / 3


def test_inputs_that_are_no_numbers_and_layers_that_get_nothing_are_named(made, tmp_path, capsys):
    folder, rows = made
    bad = damaged(folder, tmp_path / "nan", "model.layers.1.mlp.up_proj.weight", float("nan"))
    with pytest.raises(BaseError, match=r"inputs of model\.layers\.1\.mlp\.down_proj are no numbers") as caught:
        gather_importance(bad, rows)
    assert "train.lr" in caught.value.fix
    dead = damaged(folder, tmp_path / "zero", "model.layers.0.mlp.up_proj.weight", 0.0)
    found, _ = gather_importance(dead, rows)
    assert "model.layers.0.mlp.down_proj" not in found and len(found) == 13
    assert "model.layers.0.mlp.down_proj gets nothing but zeros" in capsys.readouterr().err


def test_a_column_that_got_nothing_still_counts_a_little(tmp_path):
    mean_C = np.array([4.0, 0.0, 2.0, 2.0])
    found_C = importance._counted("layer", mean_C, tmp_path)
    assert found_C.tolist() == pytest.approx([4.0, 2 * FLOOR, 2.0, 2.0])


def test_without_memory_for_a_layer_the_way_out_is_named(made, monkeypatch):
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="no importance matrix") as caught:
        gather_importance(*made)
    assert "export.importance" in caught.value.fix
    monkeypatch.undo()
    folder, rows = made

    def odd(_):
        raise BaseError("no weight of the base is stored as experts", fix="report this base")

    monkeypatch.setattr(streamed, "StreamedModel", odd)
    with pytest.raises(ResourceError, match="no importance matrix can be gathered: no weight of the base"):
        gather_importance(folder, rows)


def test_auto_takes_it_where_it_gains_and_on_wherever_it_can():
    assert [kind for kind in ("F16", "Q8_0", *GAINS) if takes_importance(kind, "auto")] == list(GAINS)
    assert takes_importance("Q6_K", "on") and not any(takes_importance(kind, "on") for kind in UNWEIGHTED)
    assert not any(takes_importance(kind, "off") for kind in GAINS)
