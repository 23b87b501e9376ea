"""Tiny random models of every supported family, built from configs: no network, fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
NO_SPECIALS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MOE = LLAMA | {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Family:
    """How to build a model and what to feed it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]


def _hf(config: str, model: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        options = getattr(transformers, config)(**settings)
        return getattr(transformers, model)._from_config(options, attn_implementation="eager")

    return build


def _tokens() -> dict[str, Tensor]:
    ids = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids}


def _tokens_both() -> dict[str, Tensor]:
    return _tokens() | {"decoder_input_ids": _tokens()["input_ids"].flip(1)}


def _pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def _vectors() -> dict[str, Tensor]:
    return {"x": torch.randn(3, 12, generator=torch.Generator().manual_seed(1))}


def _images() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))}


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(36, 8, 3, padding="same")
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, dilation=1, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.Conv2d(12, 16, 1, bias=False),
        )
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x.flatten(1, 2)).mean((1, 2))
        return self.classifier(self.features(x).mean((2, 3))) + stem[:, None]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 24, bias=False))
        self.fc1 = nn.Linear(24, 20)
        self.fc2 = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.net(x))))


BERT = SMALL | {"intermediate_size": 48, "max_position_embeddings": 32}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 48, "image_size": 16, "patch_size": 8}

FAMILIES: dict[str, Family] = {
    "bert": Family(_hf("BertConfig", "BertForMaskedLM", **BERT), _tokens),
    "roberta": Family(_hf("RobertaConfig", "RobertaForMaskedLM", **BERT), _tokens),
    "distilbert": Family(
        _hf("DistilBertConfig", "DistilBertForMaskedLM", vocab_size=64, dim=32, n_layers=2,
            n_heads=4, hidden_dim=48, max_position_embeddings=32), _tokens),
    "gpt2": Family(
        _hf("GPT2Config", "GPT2LMHeadModel", vocab_size=64, n_embd=32, n_layer=2, n_head=4,
            n_positions=32, **NO_SPECIALS), _tokens),
    "opt": Family(
        _hf("OPTConfig", "OPTForCausalLM", vocab_size=64, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, ffn_dim=48, max_position_embeddings=32,
            word_embed_proj_dim=16), _tokens),
    "llama": Family(_hf("LlamaConfig", "LlamaForCausalLM", **LLAMA), _tokens),
    "mistral": Family(_hf("MistralConfig", "MistralForCausalLM", **LLAMA), _tokens),
    "qwen2": Family(
        _hf("Qwen2Config", "Qwen2ForCausalLM", tie_word_embeddings=True, **LLAMA), _tokens),
    "qwen3": Family(_hf("Qwen3Config", "Qwen3ForCausalLM", **LLAMA), _tokens),
    "gemma": Family(_hf("GemmaConfig", "GemmaForCausalLM", **LLAMA), _tokens),
    "phi3": Family(_hf("Phi3Config", "Phi3ForCausalLM", **LLAMA, **NO_SPECIALS), _tokens),
    "gpt_neox": Family(
        _hf("GPTNeoXConfig", "GPTNeoXForCausalLM", intermediate_size=48, **SMALL), _tokens),
    "mixtral": Family(
        _hf("MixtralConfig", "MixtralForCausalLM", num_local_experts=4, **LLAMA), _tokens),
    "qwen2_moe": Family(
        _hf("Qwen2MoeConfig", "Qwen2MoeForCausalLM", shared_expert_intermediate_size=40,
            decoder_sparse_step=1, **MOE), _tokens),
    "qwen3_moe": Family(_hf("Qwen3MoeConfig", "Qwen3MoeForCausalLM", **MOE), _tokens),
    "t5": Family(
        _hf("T5Config", "T5ForConditionalGeneration", vocab_size=64, d_model=32, d_kv=8, d_ff=48,
            num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", is_gated_act=True,
            decoder_start_token_id=0), _tokens_both),
    "vit": Family(_hf("ViTConfig", "ViTForImageClassification", **VISION), _pixels),
    "clip": Family(
        _hf("CLIPConfig", "CLIPModel", projection_dim=16, vision_config=VISION,
            text_config=BERT | {"eos_token_id": 2}), lambda: _tokens() | _pixels()),
    "mamba2": Family(
        _hf("Mamba2Config", "Mamba2ForCausalLM", vocab_size=64, hidden_size=32,
            num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8, n_groups=1, expand=2,
            chunk_size=8, **NO_SPECIALS), _tokens),
    "cnn": Family(Cnn, _images),
    "mlp": Family(Mlp, _vectors),
}


def make(family: str) -> nn.Module:
    """The family's tiny model in eval mode, weights from seed 0, biases and norms not trivial."""
    torch.manual_seed(0)
    model = FAMILIES[family].build().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def call(model: nn.Module, family: str) -> Tensor:
    """The model's main output on fixed inputs."""
    out = model(**FAMILIES[family].inputs())
    if isinstance(out, Tensor):
        return out
    return out.logits if "logits" in out else out.logits_per_image
