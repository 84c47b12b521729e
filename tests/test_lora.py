"""The low-rank update against PEFT and against plain autograd; where it is attached; its dropout."""

import pytest
import torch
from tiny import save_base
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from tunesmith.errors import RecipeError
from tunesmith.model.attention import Packing
from tunesmith.model.base import compile_layers, hidden_states, load_base
from tunesmith.model.lora import (
    DropoutKeys,
    LoraLinear,
    adapted_layers,
    attach,
    channel_bits,
    keep_mask,
    merged_weight,
)
from tunesmith.recipe import LoraConfig

CPU = torch.device("cpu")


def small():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("q_proj", nn.Linear(12, 8))
    model.add_module("act", nn.SiLU())
    model.add_module("down_proj", nn.Linear(8, 6, bias=False))
    return model


def with_random_b(model):
    for _, layer in adapted_layers(model):
        nn.init.normal_(layer.b_OR)
    return model


def test_output_and_gradients_match_peft():
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    ours = small()
    attach(ours, LoraConfig(rank=4, alpha=6), seed=1)
    with_random_b(ours)
    theirs = get_peft_model(small(), PeftConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"]))
    layers = dict(adapted_layers(ours))
    for name, layer in layers.items():
        module = theirs.base_model.model.get_submodule(name)
        module.lora_A["default"].weight.data.copy_(layer.a_RI.data)
        module.lora_B["default"].weight.data.copy_(layer.b_OR.data)
    x_BTI = torch.randn(2, 3, 12, requires_grad=True)
    y_BTI = x_BTI.detach().clone().requires_grad_()
    ours(x_BTI).square().sum().backward()
    theirs(y_BTI).square().sum().backward()
    torch.testing.assert_close(x_BTI.grad, y_BTI.grad)
    for name, layer in layers.items():
        module = theirs.base_model.model.get_submodule(name)
        torch.testing.assert_close(layer.a_RI.grad, module.lora_A["default"].weight.grad)
        torch.testing.assert_close(layer.b_OR.grad, module.lora_B["default"].weight.grad)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_of_x_a_and_b_are_those_of_autograd(dropout):
    layer = LoraLinear(nn.Linear(5, 7), LoraConfig(rank=2, alpha=6, dropout=dropout), layer=4, keys=DropoutKeys())
    layer.double()
    nn.init.normal_(layer.a_RI), nn.init.normal_(layer.b_OR)
    layer.keys.keys_T = torch.arange(6) * 1_000_003
    x_TI = torch.randn(6, 5, dtype=torch.double, requires_grad=True)
    mask_TI = (
        keep_mask(layer.keys.keys_T, torch.tensor(4), channel_bits(5, CPU), dropout, x_TI.dtype)
        if dropout
        else torch.ones(6, 5)
    )
    assert (mask_TI == 0).any() == bool(dropout)
    plain_TO = layer.base(x_TI) + 3 * (x_TI * mask_TI) @ layer.a_RI.T @ layer.b_OR.T
    ours_TO = layer(x_TI)
    torch.testing.assert_close(ours_TO, plain_TO)
    wanted = torch.autograd.grad(plain_TO.square().sum(), (x_TI, layer.a_RI, layer.b_OR))
    found = torch.autograd.grad(ours_TO.square().sum(), (x_TI, layer.a_RI, layer.b_OR))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_merged_weight_equals_the_adapter():
    model = small()
    attach(model, LoraConfig(rank=2, alpha=8), seed=0)
    with_random_b(model)
    x_TI = torch.randn(5, 12)
    wanted = model(x_TI)
    for _, layer in adapted_layers(model):
        halves = [
            merged_weight(layer.base.weight[s], layer.a_RI, layer.b_OR[s], layer.scale)
            for s in (slice(0, 3), slice(3, None))
        ]
        torch.testing.assert_close(
            torch.cat(halves), merged_weight(layer.base.weight, layer.a_RI, layer.b_OR, layer.scale)
        )
        layer.merge_in_place()
    torch.testing.assert_close(model(x_TI), wanted)


def test_attach_adapts_the_targets_and_only_they_learn():
    model = small()
    attach(model, LoraConfig(rank=2, targets=("q_proj",)), seed=0)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"q_proj.a_RI", "q_proj.b_OR"}
    assert type(model.down_proj) is nn.Linear


def test_a_layer_starts_the_same_whichever_others_are_adapted():
    one, two = small(), small()
    attach(one, LoraConfig(rank=2, targets=("down_proj",)), seed=5)
    attach(two, LoraConfig(rank=2), seed=5)
    assert torch.equal(one.down_proj.a_RI, two.down_proj.a_RI)
    bound = 8**-0.5
    assert two.down_proj.a_RI.abs().max() <= bound and two.down_proj.a_RI.abs().max() > bound / 2


def test_a_target_that_matches_nothing_is_an_error():
    with pytest.raises(RecipeError, match=r"v_proj names no linear layer(.|\n)*choose from down_proj, q_proj"):
        attach(small(), LoraConfig(targets=("v_proj", "q_proj")), seed=0)


def test_dropout_depends_on_token_layer_and_channel_alone():
    keys_T, three = torch.arange(4000) * 7919, torch.tensor(3)
    mask_TI = keep_mask(keys_T, three, channel_bits(64, CPU), 0.25, torch.float32)
    assert torch.equal(keep_mask(keys_T.flip(0), three, channel_bits(64, CPU), 0.25, torch.float32).flip(0), mask_TI)
    assert torch.equal(keep_mask(keys_T[10:20], three, channel_bits(64, CPU), 0.25, torch.float32), mask_TI[10:20])
    assert not torch.equal(keep_mask(keys_T, torch.tensor(4), channel_bits(64, CPU), 0.25, torch.float32), mask_TI)
    kept = (mask_TI > 0).float()
    assert abs(kept.mean() - 0.75) < 0.005  # 256,000 draws: five standard deviations are 0.0043
    assert mask_TI.unique().tolist() == [0, pytest.approx(1 / 0.75)]
    neighbours = torch.corrcoef(torch.stack([kept[:-1].flatten(), kept[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.01 and kept.mean(dim=0).min() > 0.7 and kept.mean(dim=1).min() > 0.4


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (0, [246, 215, 241, 254, 159, 125]),
        (3, [231, 199, 223, 143, 227, 252]),
        (41, [223, 238, 39, 227, 254, 239]),
    ],
)
def test_the_mask_is_that_of_version_0_1(layer, kept):
    keys_T = torch.tensor([0, 1, -5, 7919, 123456789012345, -(1 << 62)])
    mask_TI = keep_mask(keys_T, torch.tensor(layer), channel_bits(8, CPU), 0.25, torch.float32)
    assert [sum(1 << bit for bit, value in enumerate(row) if value) for row in mask_TI.tolist()] == kept


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_all_layers_share_one_compiled_graph(tmp_path, dropout):
    layers = torch._dynamo.config.recompile_limit + 4
    model = load_base(save_base(tmp_path / "base", layers=layers), precision="fp32", device=torch.device("cpu"))
    keys = attach(model, LoraConfig(rank=2, dropout=dropout), seed=0)
    counter = CompileCounterWithBackend("aot_eager")
    compile_layers(model, counter)
    ids_T = torch.arange(30)
    for step in range(2):
        keys.keys_T = ids_T * 7919 + step
        hidden_states(model, ids_T, ids_T, Packing((30,), None, 30)).sum().backward()
    assert counter.frame_count == 2  # the first layer's, whose input needs no gradient, and that of all the others
    masks = {tuple(layer.layer.flatten().tolist()) for _, layer in adapted_layers(model)}
    assert len(masks) == 7 * layers and not any(name.endswith(".layer") for name in model.state_dict())


def test_channels_are_not_counted_inside_a_compiled_layer():
    """torch 2.11 counts them in 32 bits there, and its GPU code for the product with 64 did not compile."""
    layer = LoraLinear(nn.Linear(5, 7), LoraConfig(rank=2, dropout=0.3), layer=4, keys=DropoutKeys())
    layer.keys.keys_T, codes = torch.arange(6), []
    torch.compile(layer, backend=lambda graph, inputs: codes.append(graph.code) or graph)(torch.randn(6, 5))
    assert len(codes) == 1 and "channels" in codes[0] and "arange" not in codes[0]
