"""Sliding windows: rows longer than the window, packed, have the logits that transformers gives each alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.errors import ProofError
from tunesmith.model import attention
from tunesmith.model.attention import packed_attention
from tunesmith.model.base import backbone, head, hidden_states, load_base
from tunesmith.model.batch import Batching
from tunesmith.proof.packing import ALONE, NAME, prove_packing, rows_past
from tunesmith.tokens.rows import TokenRows
from tunesmith.training.sample import Question, answer

CPU = torch.device("cpu")
WINDOWED = {
    "mistral": {"sliding_window": 24},
    "phi3": {"sliding_window": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1, "head_dim": 16},
    "smollm3": {"use_sliding_window": True, "sliding_window": 24, "layer_types": ["sliding_attention"] * 3},
    "gemma3_text": {"sliding_window": 24, "sliding_window_pattern": 3, "head_dim": 16},
    "cohere2": {"sliding_window": 24, "sliding_window_pattern": 3},
}


def rows_of(*lengths):
    """Rows of random tokens, all supervised."""
    ids = np.random.default_rng(0).integers(3, 400, sum(lengths)).astype(np.int32)
    offsets = np.cumsum([0, *lengths])
    return TokenRows(ids, np.ones(len(ids), bool), offsets, np.diff(offsets))


def save(folder, kind, **config):
    settings = {
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "max_position_embeddings": 512,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(settings | config)), dtype=torch.float32)
    for parameter in model.parameters():  # large enough for attention to look at single tokens
        torch.nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.8, 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("window", [1, 5, 128, 300, 999])
@pytest.mark.parametrize("least", [1, 128])
def test_a_window_by_blocks_is_a_window_by_one_mask(window, least, monkeypatch):
    monkeypatch.setattr(attention, "LEAST_BLOCK", least)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 404, 8, requires_grad=True) for heads in (4, 2, 2))
    ours, _ = packed_attention(
        None, q, k, v, None, scaling=0.3, conversation_lengths=(4, 300, 100), sliding_window=window
    )
    parts = [
        F.scaled_dot_product_attention(*part, attn_mask=torch.ones(n, n).tril().triu(1 - window) > 0, scale=0.3)
        for n, *part in zip(
            (4, 300, 100), *(x.repeat_interleave(4 // x.shape[1], 1).split((4, 300, 100), 2) for x in (q, k, v)),
            strict=True,
        )
    ]  # fmt: skip
    theirs = torch.cat(parts, 2).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    given = torch.randn_like(ours)
    for mine, wanted in zip(*(torch.autograd.grad(out, (q, k, v), given) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_a_long_row_takes_no_mask_of_its_whole_square(monkeypatch):
    """Of 4,096 tokens a window of 64 has masks of 128 queries by 191 keys, not 16 million places."""
    sizes, real = [], F.scaled_dot_product_attention

    def noted(*tensors, attn_mask, scale):
        sizes.append(attn_mask.numel())
        return real(*tensors, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    q = torch.randn(1, 1, 4096, 4)
    packed_attention(None, q, q, q, None, scaling=1.0, conversation_lengths=(4096,), sliding_window=64)
    assert len(sizes) == 32 and max(sizes) == 128 * 191


@pytest.mark.parametrize("kind", WINDOWED)
@torch.no_grad()
def test_rows_longer_than_the_window_are_trained_packed(kind, tmp_path):
    folder = save(tmp_path, kind, **WINDOWED[kind])
    model, rows = load_base(folder, precision="fp32", device=CPU), rows_of(9, 90, 30, 200)
    batching = Batching(400, 200, CPU, kernel=False, static=False)
    batch = batching.micro_batch(rows, [0, 1, 2, 3])
    hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for row in range(4):
        at_T = torch.from_numpy(batch.row_of_T == row)
        theirs_TV = eager(batch.ids_T[None, at_T]).logits[0]
        torch.testing.assert_close(head(model).logits(hidden_TD[at_T]), theirs_TV, rtol=1e-3, atol=1e-3)
    everywhere = AutoModelForCausalLM.from_pretrained(folder, sliding_window=1000, attn_implementation="eager")
    whole_TV, theirs_TV = (of(batch.ids_T[None, -200:]).logits[0] for of in (everywhere, eager))
    assert (whole_TV - theirs_TV).norm() > 0.01 * theirs_TV.norm()  # without the window it would be seen
    proof = prove_packing(model, (rows, batching))
    assert proof.value < 1e-4 and proof.name == NAME


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
@torch.no_grad()
def test_a_sample_longer_than_the_window_is_what_training_computes(kind, tmp_path):
    """With transformers' cache, which keeps a window's keys alone, and without it."""
    folder = save(tmp_path, kind, **WINDOWED[kind], tie_word_embeddings=False)
    model = load_base(folder, precision="fp32", device=CPU)
    told = rows_of(60).tokens_T.tolist()
    ids, ended = answer(model, Question(0, "", tuple(told), stop=-1), most=12, until=float("inf"))
    for _ in ids:
        hidden_TD = backbone(model)(input_ids=torch.tensor([told]), use_cache=False).last_hidden_state[0]
        told.append(int(head(model).logits(hidden_TD[-1:]).argmax()))
    assert ids == told[60:] and len(set(ids)) > 2 and not ended


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [([20, 90, 30, 70], [20, 70]), ([20, 90, 130], [20, 90]), ([60, 190], [190]), ([20, 64], []), ([90, 120], [90])],
)
def test_the_row_past_the_window_is_the_shortest_after_the_shortest_of_all(lengths, chosen):
    assert [lengths[row] for row in rows_past(64, rows_of(*lengths), 200)] == chosen


@pytest.mark.parametrize(("lengths", "name"), [((650, 20, 60, 680), NAME), ((600, 660), ALONE)])
def test_a_window_that_is_not_kept_is_found_in_a_row_that_is_longer(lengths, name, tmp_path, monkeypatch):
    """The rows that share a bin are shorter than the window of 520; the one that is compared for it is longer."""
    folder = save(tmp_path, "mistral", sliding_window=520, max_position_embeddings=1024, num_hidden_layers=1)
    model, rows = load_base(folder, precision="fp32", device=CPU), rows_of(*lengths)
    batching = Batching(700, 700, CPU, kernel=False, static=False)
    proof = prove_packing(model, (rows, batching))
    assert proof.value < 1e-4 and proof.name == name and proof.positions >= 512
    monkeypatch.setattr(
        attention, "_windowed",
        lambda q, k, v, scaling, window: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling),
    )  # fmt: skip
    with pytest.raises(ProofError, match=r"packing changes the base's logits.* at row \d, token [56]\d\d"):
        prove_packing(model, (rows, batching))


def test_numbers_that_fp16_does_not_hold_are_named(tmp_path):
    folder = save(tmp_path, "mistral", sliding_window=None)
    model = load_base(folder, precision="fp16", device=CPU)
    model.model.layers[0].mlp.down_proj.weight.mul_(1e5)
    with pytest.raises(ProofError, match="too large for fp16") as caught:
        prove_packing(model, (rows_of(9, 20), Batching(40, 40, CPU, kernel=False, static=False)))
    assert "train.precision to fp32" in caught.value.fix
