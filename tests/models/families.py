"""Tiny random models of every supported family, built from configs: no network, fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corank.operators import LowRank, Operator

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
NO_SPECIALS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MOE = LLAMA | {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Family:
    """How to build a model and what to feed it."""

    title: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    roles: str  #: the sites found, as "role count" in alphabetical order of roles
    refused: tuple[str, ...] = ()  #: the weights refused
    tied: tuple[str, ...] = ()  #: places that share the first embedding's table
    stacks: tuple[int, ...] = (2,)  #: blocks per stack


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
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"intermediate_size": 48, "image_size": 16, "patch_size": 8}

LLAMA_ROLES = "down 2, embed 1, gate 2, head 1, k 2, o 2, q 2, up 2, v 2"
TIED_ROLES = LLAMA_ROLES.replace("head 1, ", "")
BERT_ROLES = "down 2, embed 1, k 2, o 2, other 1, position 2, q 2, up 2, v 2"
ROUTERS = ("model.layers.0.mlp.gate", "model.layers.1.mlp.gate")
EXPERTS = "expert_down 8, expert_gate_up 8"

FAMILIES: dict[str, Family] = {
    "bert": Family(
        "BERT",
        _hf("BertConfig", "BertForMaskedLM", **BERT),
        _tokens,
        BERT_ROLES,
        tied=("cls.predictions.decoder",),
    ),
    "roberta": Family(
        "RoBERTa",
        _hf("RobertaConfig", "RobertaForMaskedLM", **BERT),
        _tokens,
        BERT_ROLES,
        tied=("lm_head.decoder",),
    ),
    "distilbert": Family(
        "DistilBERT",
        _hf(
            "DistilBertConfig",
            "DistilBertForMaskedLM",
            vocab_size=64,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=48,
            max_position_embeddings=32,
        ),
        _tokens,
        BERT_ROLES.replace("position 2", "position 1"),
        tied=("vocab_projector",),
    ),
    "gpt2": Family(
        "GPT-2",
        _hf(
            "GPT2Config",
            "GPT2LMHeadModel",
            vocab_size=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=32,
            **NO_SPECIALS,
        ),
        _tokens,
        "down 2, embed 1, o 2, position 1, qkv 2, up 2",
        tied=("lm_head",),
    ),
    "opt": Family(
        "OPT",
        _hf(
            "OPTConfig",
            "OPTForCausalLM",
            ffn_dim=48,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
            **SMALL,
        ),
        _tokens,
        "down 2, embed 1, k 2, o 2, other 2, q 2, up 2, v 2",
        refused=("model.decoder.embed_positions",),
        tied=("lm_head",),
    ),
    "llama": Family("LLaMA", _hf("LlamaConfig", "LlamaForCausalLM", **LLAMA), _tokens, LLAMA_ROLES),
    "mistral": Family(
        "Mistral", _hf("MistralConfig", "MistralForCausalLM", **LLAMA), _tokens, LLAMA_ROLES
    ),
    "qwen2": Family(
        "Qwen2",
        _hf("Qwen2Config", "Qwen2ForCausalLM", tie_word_embeddings=True, **LLAMA),
        _tokens,
        TIED_ROLES,
        tied=("lm_head",),
    ),
    "qwen3": Family("Qwen3", _hf("Qwen3Config", "Qwen3ForCausalLM", **LLAMA), _tokens, LLAMA_ROLES),
    "gemma": Family(
        "Gemma",
        _hf("GemmaConfig", "GemmaForCausalLM", **LLAMA),
        _tokens,
        TIED_ROLES,
        tied=("lm_head",),
    ),
    "phi3": Family(
        "Phi-3",
        _hf("Phi3Config", "Phi3ForCausalLM", **LLAMA, **NO_SPECIALS),
        _tokens,
        "down 2, embed 1, gate_up 2, head 1, o 2, qkv 2",
    ),
    "gpt_neox": Family(
        "GPT-NeoX",
        _hf("GPTNeoXConfig", "GPTNeoXForCausalLM", intermediate_size=48, **SMALL),
        _tokens,
        "down 2, embed 1, head 1, o 2, qkv 2, up 2",
    ),
    "mixtral": Family(
        "Mixtral",
        _hf("MixtralConfig", "MixtralForCausalLM", num_local_experts=4, **LLAMA),
        _tokens,
        f"embed 1, {EXPERTS}, head 1, k 2, o 2, q 2, v 2",
        refused=ROUTERS,
    ),
    "qwen2_moe": Family(
        "Qwen2-MoE",
        _hf(
            "Qwen2MoeConfig",
            "Qwen2MoeForCausalLM",
            shared_expert_intermediate_size=40,
            decoder_sparse_step=1,
            **MOE,
        ),
        _tokens,
        f"down 2, embed 1, {EXPERTS}, gate 2, head 1, k 2, o 2, q 2, router 2, up 2, v 2",
        refused=ROUTERS,
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        _hf("Qwen3MoeConfig", "Qwen3MoeForCausalLM", **MOE),
        _tokens,
        f"embed 1, {EXPERTS}, head 1, k 2, o 2, q 2, v 2",
        refused=ROUTERS,
    ),
    "t5": Family(
        "T5",
        _hf(
            "T5Config",
            "T5ForConditionalGeneration",
            vocab_size=64,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        ),
        _tokens_both,
        "down 4, embed 1, gate 4, k 6, o 6, position 2, q 6, up 4, v 6",
        tied=("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"),
        stacks=(2, 2),
    ),
    "vit": Family(
        "ViT",
        _hf("ViTConfig", "ViTForImageClassification", **VISION),
        _pixels,
        "conv 1, down 2, head 1, k 2, o 2, q 2, up 2, v 2",
        refused=("vit.embeddings",),
    ),
    "clip": Family(
        "CLIP",
        _hf(
            "CLIPConfig",
            "CLIPModel",
            projection_dim=16,
            vision_config=VISION,
            text_config=BERT | NO_SPECIALS,
        ),
        lambda: _tokens() | _pixels(),
        "conv 1, down 4, embed 1, k 4, o 4, other 2, position 2, q 4, up 4, v 4",
        stacks=(2, 2),
    ),
    "mamba2": Family(
        "Mamba-2",
        _hf(
            "Mamba2Config",
            "Mamba2ForCausalLM",
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_heads=8,
            head_dim=8,
            state_size=8,
            n_groups=1,
            expand=2,
            chunk_size=8,
            **NO_SPECIALS,
        ),
        _tokens,
        "embed 1, head 1, in_proj 2, out_proj 2",
        refused=("backbone.layers.0.mixer.conv1d", "backbone.layers.1.mixer.conv1d"),
    ),
    "cnn": Family("plain CNN", Cnn, _images, "conv 4, head 1", refused=("features.4",), stacks=()),
    "mlp": Family("plain MLP", Mlp, _vectors, "other 4", stacks=()),
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
    inputs = FAMILIES[family].inputs()
    out = model(**{name: cast(x, model) for name, x in inputs.items()})
    if isinstance(out, Tensor):
        return out
    return out.logits if "logits" in out else out.logits_per_image


def cast(x: Tensor, model: nn.Module) -> Tensor:
    """Floating point inputs in the model's dtype."""
    dtype = next(p.dtype for p in model.parameters())
    return x.to(dtype) if x.is_floating_point() else x


def full_rank(op: Operator) -> LowRank:
    """The same matrix as two factors of full rank, by an exact SVD in float64."""
    u, s, vh = torch.linalg.svd(op.dense().detach().double(), full_matrices=False)
    root = s.sqrt()
    return LowRank((u * root).contiguous().to(op.dtype), (root[:, None] * vh).to(op.dtype))


def half_rank(op: Operator) -> LowRank:
    """A LowRank of half the full rank in the shape of `op`, any values, on its device."""
    rank = max(1, min(op.shape) // 2)
    full = (
        full_rank(op)
        if op.device.type != "meta"
        else LowRank(
            op.dense().new_empty(op.shape[0], rank), op.dense().new_empty(rank, op.shape[1])
        )
    )
    return LowRank(full.b[:, :rank].detach().contiguous(), full.a[:rank].detach().contiguous())
