"""What `auto` means: by device, and by what fits into its memory. The sums are written out for Llama 3.2 1B."""

import json

import pytest
import torch
from training_runs import recipe_with

from tunesmith.errors import ResourceError
from tunesmith.recipe import TrainConfig
from tunesmith.training.device import conditions
from tunesmith.training.memory import decide_autos

GPU, CPU = torch.device("cuda"), torch.device("cpu")
AUTO = {"micro_batch_tokens": "auto", "precision": "auto", "recompute": "auto", "tokens_per_step": 16384}
STORED = 2_471_645_608  # bytes of its weights, in bf16


@pytest.fixture
def llama(tmp_path):
    """The small files of Llama 3.2 1B, and a file as large as its weights, with nothing in it."""
    config = {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(STORED)
    return tmp_path


def decided(folder, device, **train):
    found = decide_autos(recipe_with(**(AUTO | {"max_length": 2048} | train)), folder, device).train
    return found.precision, found.micro_batch_tokens, found.recompute


@pytest.mark.parametrize(
    ("free_bytes", "expected"),
    [  # 0.85 of it, less weights and 1 GiB; a token keeps 16 x 114,688 bytes, or recomputed 16 x 4,096 + 114,688
        (80e9, ("bf16", 16384, "off")),  # 64.5 GB for 16,384 x 1.84 MB = 30.1 GB
        (16e9, ("bf16", 4096, "off")),  # 10.1 GB for 4,096 x 1.84 MB = 7.5 GB
        (6e9, ("bf16", 8192, "on")),  # 1.55 GB: 2,048 tokens would need 3.8 GB; 8,192 recomputed 1.48 GB
    ],
)
def test_the_largest_micro_batch_that_fits(llama, monkeypatch, free_bytes, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free_bytes), int(80e9)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert decided(llama, GPU) == expected
    if free_bytes == 80e9:  # what is set is kept
        assert decided(llama, GPU, micro_batch_tokens=2048, recompute="on", precision="fp32") == ("fp32", 2048, "on")


def test_heads_wider_than_the_hidden_state_count(llama, monkeypatch):
    """As Qwen 3's: 32 of 128 keep 12 x 4,096 numbers, and 2,048 tokens more than 6 GB."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(10e9), int(80e9)))
    assert decided(llama, GPU) == ("bf16", 2048, "off")  # 5.0 GB for 2,048 x 1.84 MB = 3.8 GB
    config = json.loads((llama / "config.json").read_text()) | {"num_attention_heads": 32, "head_dim": 128}
    (llama / "config.json").write_text(json.dumps(config))
    assert decided(llama, GPU) == ("bf16", 16384, "on")  # for 2,048 x 2.62 MB = 5.4 GB


def test_what_cannot_fit_is_said_with_the_fix(llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(4e9), int(16e9)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ResourceError, match=r"2048 tokens do not fit into 4\.0 GB") as caught:
        decided(llama, GPU)
    assert "max_length" in caught.value.fix


@pytest.mark.parametrize(
    ("max_length", "tokens_per_step", "micro"), [(2048, 16384, 2048), (200, 400, 400), (200, 16384, 1024)]
)
def test_on_a_cpu_a_micro_batch_holds_the_longest_conversation_and_no_more_than_a_step(
    llama, max_length, tokens_per_step, micro
):
    found = decided(llama, CPU, max_length=max_length, tokens_per_step=tokens_per_step)
    assert found[1:] == (micro, "off") and found[0] in ("fp32", "bf16")


def test_an_old_gpu_computes_in_fp16(llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(16e9), int(16e9)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert decided(llama, GPU)[0] == "fp16"
    config = json.loads((llama / "config.json").read_text()) | {"model_type": "gemma3_text"}
    (llama / "config.json").write_text(json.dumps(config))
    assert decided(llama, GPU)[0] == "fp32"  # whose numbers fp16 does not hold


def test_the_number_of_threads_is_a_condition_of_equal_bits():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert conditions(TrainConfig(), CPU)["threads"] == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert conditions(TrainConfig(), CPU)["threads"] == threads
