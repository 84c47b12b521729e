"""The low-rank update against PEFT and against plain autograd; where it is attached; its dropout."""

import pytest
import torch
from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.model.lora import LoraLinear, adapted_layers, attach, keep_mask, merged_weight
from tunesmith.recipe import LoraConfig


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


def test_gradients_with_dropout_are_those_of_autograd():
    layer = LoraLinear(
        nn.Linear(5, 7).double(), LoraConfig(rank=2, dropout=0.3), layer=0, keys=attach(small(), LoraConfig(), seed=0)
    )
    layer.double()
    nn.init.normal_(layer.b_OR)
    layer.keys.keys_T = torch.arange(6) * 1_000_003
    x_TI = torch.randn(6, 5, dtype=torch.double, requires_grad=True)

    def forward(x_TI, a_RI, b_OR):
        layer.a_RI.data, layer.b_OR.data = a_RI, b_OR
        mask_TI = keep_mask(layer.keys.keys_T, 0, 5, 0.3, x_TI.dtype)
        plain_TO = layer.base(x_TI) + layer.scale * (x_TI * mask_TI) @ a_RI.T @ b_OR.T
        torch.testing.assert_close(layer(x_TI), plain_TO)
        return plain_TO

    plain = forward(x_TI, layer.a_RI.detach().requires_grad_(), layer.b_OR.detach().requires_grad_())
    (grad_plain,) = torch.autograd.grad(plain.square().sum(), x_TI)
    (grad_ours,) = torch.autograd.grad(layer(x_TI).square().sum(), x_TI)
    torch.testing.assert_close(grad_ours, grad_plain)


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
    with pytest.raises(
        RecipeError, match=r"\['v_proj'\] match no linear layer(.|\n)*choose from \['down_proj', 'q_proj'\]"
    ):
        attach(small(), LoraConfig(targets=("v_proj", "q_proj")), seed=0)


def test_dropout_depends_on_token_layer_and_channel_alone():
    keys_T = torch.arange(4000) * 7919
    mask_TI = keep_mask(keys_T, 3, 64, 0.25, torch.float32)
    assert torch.equal(keep_mask(keys_T.flip(0), 3, 64, 0.25, torch.float32).flip(0), mask_TI)
    assert torch.equal(keep_mask(keys_T[10:20], 3, 64, 0.25, torch.float32), mask_TI[10:20])
    assert not torch.equal(keep_mask(keys_T, 4, 64, 0.25, torch.float32), mask_TI)
    kept = (mask_TI > 0).float()
    assert abs(kept.mean() - 0.75) < 0.005  # 256,000 draws: five standard deviations are 0.0043
    assert mask_TI.unique().tolist() == [0, pytest.approx(1 / 0.75)]
    neighbours = torch.corrcoef(torch.stack([kept[:-1].flatten(), kept[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.01 and kept.mean(dim=0).min() > 0.7 and kept.mean(dim=1).min() > 0.4
