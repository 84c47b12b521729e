"""Names in PEFT's file format: for those who read an adapter with torch, and those who do without."""

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # of tensors: PEFT wraps the model twice
A, B = ".lora_A.weight", ".lora_B.weight"
"""How the names of a layer's two matrices end."""
