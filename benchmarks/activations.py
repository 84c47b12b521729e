"""What a layer keeps for the backward pass, counted, against what the memory plan takes for it (training/memory.py).

Real shapes, random weights, bf16, LoRA of rank 16 on all linear layers; as the layers are, and compiled: the cut
between forward and backward pass is the one of torch's compiler, without its code. Needs no GPU.
Usage: python benchmarks/activations.py
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.model.attention import PACKED, Packing
from tunesmith.model.base import compile_layers, hidden_states
from tunesmith.model.lora import attach
from tunesmith.recipe import LoraConfig

TOKENS = 128
SHAPES = {  # name: model_type, hidden, feed-forward, heads, key and value heads, width of a head
    "Llama 3.2 1B": ("llama", 2048, 8192, 32, 8, 64),
    "Qwen 2.5 0.5B": ("qwen2", 896, 4864, 14, 2, 64),
    "Qwen 3 0.6B": ("qwen3", 1024, 3072, 16, 8, 128),
    "Gemma 3 270M": ("gemma3_text", 640, 2048, 4, 1, 256),
    "Gemma 3 1B": ("gemma3_text", 1152, 6912, 4, 1, 256),
    "SmolLM3": ("smollm3", 2048, 11008, 16, 4, 128),
    "Phi-4-mini": ("phi3", 3072, 8192, 24, 8, 128),
    "Granite 3.3 2B": ("granite", 2048, 8192, 32, 8, 64),
}


def kept_bytes(shape, layers, *, compiled):
    """Bytes that a forward pass keeps beside weights."""
    kind, hidden, inner, heads, groups, width = shape
    config = AutoConfig.for_model(
        kind, vocab_size=64, hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads, head_dim=width,
        num_key_value_heads=groups, num_hidden_layers=layers, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=PACKED).eval()
    attach(model.requires_grad_(False), LoraConfig(rank=16), seed=0)
    if compiled:
        compile_layers(model, "aot_eager_decomp_partition")
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    positions_T = torch.arange(TOKENS)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_TD = hidden_states(model, positions_T % 64, positions_T, Packing((TOKENS,), None, TOKENS))
    assert hidden_TD.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def main():
    """One table row for each shape."""
    print("| base | plan, bytes a token and layer | as it is | compiled |\n|---|---|---|---|")
    for name, shape in SHAPES.items():
        _, hidden, inner, heads, _, width = shape
        plan = 2 * (12 * max(hidden, heads * width) + 4 * inner)
        both = [
            (kept_bytes(shape, 2, compiled=compiled) - kept_bytes(shape, 1, compiled=compiled)) / TOKENS / plan
            for compiled in (False, True)
        ]
        print(f"| {name} | {plan:,} | {both[0]:.2f} of it | {both[1]:.2f} of it |", flush=True)


if __name__ == "__main__":
    main()
