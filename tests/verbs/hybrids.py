"""Tiny random models with state-space mixers, alone and among attentions."""

from __future__ import annotations

import torch

SMALL = {"vocab_size": 64, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
ATTENTION = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
             "max_position_embeddings": 64}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 16,
         "mamba_expand": 2, "mamba_chunk_size": 8}  # fmt: skip


def _build(model, config, **options):
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**SMALL, **options)).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():  # biases and norms that are not trivial, weights that matter
        for name, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, generator=g)
            keeps = name.endswith(("A_log", "D", "dt_bias"))
            scale = 0.1 if keeps else 0.25 if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * noise + (parameter if parameter.ndim == 1 else 0))
    return made


def tiny_mamba2(**options):
    sizes = {"num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "n_groups": 2,
             "state_size": 32, "expand": 4, "chunk_size": 8} | options  # fmt: skip
    return _build("Mamba2ForCausalLM", "Mamba2Config", **sizes)


def tiny_bamba(**options):
    return _build(
        "BambaForCausalLM", "BambaConfig", num_hidden_layers=3, attn_layer_indices=[1],
        **ATTENTION, **MAMBA, **options,
    )  # fmt: skip


def tiny_granite(**options):
    return _build(
        "GraniteMoeHybridForCausalLM", "GraniteMoeHybridConfig", num_hidden_layers=2,
        layer_types=["mamba", "attention"], num_local_experts=0, num_experts_per_tok=0,
        shared_intermediate_size=48, **ATTENTION, **MAMBA, **options,
    )  # fmt: skip


def tiny_nemotron(**options):
    return _build(
        "NemotronHForCausalLM", "NemotronHConfig",
        layers_block_type=["mamba", "attention", "mlp", "mamba"], intermediate_size=48,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        mamba_num_heads=8, mamba_head_dim=8, n_groups=2, ssm_state_size=16, chunk_size=8,
        mlp_hidden_act="relu2", **options,
    )  # fmt: skip


def padded(batches, count):
    """The same rows with so much padding after them."""
    found = []
    for batch in batches:
        ids = batch["input_ids"]
        mask = torch.ones_like(ids)
        empty = torch.zeros(len(ids), count, dtype=ids.dtype)
        found.append({"input_ids": torch.cat([ids, empty], 1),
                      "attention_mask": torch.cat([mask, empty], 1)})  # fmt: skip
    return found


def tiny_falcon(**options):
    return _build(
        "FalconH1ForCausalLM", "FalconH1Config", num_hidden_layers=1, mamba_d_ssm=64, head_dim=8,
        **ATTENTION, **MAMBA, **options,
    )  # fmt: skip
