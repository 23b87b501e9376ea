"""What a weight does in its model, from its name, its shape and its place."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Roles of the attention and of the feed-forward part, as "attention" and "mlp" target them.
ATTENTION = frozenset({"q", "k", "v", "o", "qkv"})
MLP = frozenset({"gate", "up", "gate_up", "down", "expert_gate_up", "expert_down"})


@dataclass(frozen=True)
class Place:
    """What role inference looks at."""

    path: str
    kind: str
    shape: tuple[int, int]  # (out, in)
    in_block: bool
    is_input: bool = False  #: it is the model's input embedding
    is_output: bool = False  #: it is the model's output head


#: An attention's own scope: any component that says so.
_ATTENTION = r"(^|\.)[^.]*(attn|attention)[^.]*\."
_EMBEDDINGS = (
    r"(wte|tok_embeddings|shared|embeddings?|(word|token|embed)_?(tokens?|embeddings?|in))$"
)

#: (kinds, pattern searched in the dotted path, role): the first that matches decides.
RULES: tuple[tuple[str, str, str], ...] = (
    ("embedding", r"(position|wpe|token_type|segment|relative)", "position"),
    ("embedding", rf"(^|\.){_EMBEDDINGS}", "embed"),
    ("conv", r"", "conv"),
    ("expert", r"\.gate_up_proj\.\d+$", "expert_gate_up"),
    ("expert", r"\.down_proj\.\d+$", "expert_down"),
    ("linear", r"(^|\.)(router|shared_expert_gate)(\.|$)", "router"),
    ("linear", r"\.(moe|mlp|block_sparse_moe|feed_forward|ffn)\.gate$", "router"),
    ("linear", r"(^|\.)(mixer|mamba|ssm)\.in_proj$", "in_proj"),
    ("linear", r"(^|\.)(mixer|mamba|ssm)\.out_proj$", "out_proj"),
    ("linear", r"(^|\.)(q|to_q|wq|q_proj|q_lin|query|query_proj)$", "q"),
    ("linear", r"(^|\.)(k|to_k|wk|k_proj|k_lin|key|key_proj)$", "k"),
    ("linear", r"(^|\.)(v|to_v|wv|v_proj|v_lin|value|value_proj)$", "v"),
    ("linear", r"(^|\.)(qkv|to_qkv|qkv_proj|wqkv|c_attn|query_key_value|in_proj_qkv)$", "qkv"),
    ("linear", rf"{_ATTENTION}.*?(output\.dense|out_lin|out_proj|dense|c_proj|proj|wo|o)$", "o"),
    ("linear", rf"{_ATTENTION}(to_out|to_out\.0)$", "o"),
    ("linear", r"(^|\.)o_proj$", "o"),
    ("linear", r"(^|\.)(lm_head|embed_out|vocab_projector|score|qa_outputs|classifier)$", "head"),
    ("linear", r"(^|\.)(predictions|lm_head|generator)\.(decoder|proj)$", "head"),
)

#: The same within a repeated block only: the names are too common elsewhere.
BLOCK_RULES: tuple[tuple[str, str, str], ...] = (
    ("linear", r"(^|\.)(gate_up_proj|w12|Wi|shared_mlp\.input_linear)$", "gate_up"),
    ("linear", r"(^|\.)(gate_proj|wi_0|w1|w_gate)$", "gate"),
    ("linear", r"(^|\.)(up_proj|c_fc|fc_?1|fc_in|lin1|linear1|wi|wi_1|w3|dense_h_to_4h)$", "up"),
    ("linear", r"\.intermediate\.dense$", "up"),
    ("linear", r"(^|\.)(down_proj|fc_?2|fc_out|lin2|linear2|wo|w2|dense_4h_to_h)$", "down"),
    ("linear", r"\.shared_mlp\.output_linear$", "down"),
    ("linear", r"\.(mlp\.c_proj|output\.dense)$", "down"),
)

_FEED_FORWARD = r"(^|\.)[^.]*(mlp|ffn|feed_?forward|ff)[^.]*\."


def infer_role(place: Place) -> str:
    """The role of a weight; "other" where neither its place, name nor shape says."""
    if place.is_input and place.kind == "embedding":
        return "embed"
    if place.is_output and place.kind == "linear":
        return "head"
    kind = "linear" if place.kind == "conv1d_transposed" else place.kind
    for kinds, pattern, role in RULES + (BLOCK_RULES if place.in_block else ()):
        if kinds == kind and re.search(pattern, place.path, re.IGNORECASE):
            return role
    return _by_shape(place) if place.in_block and kind == "linear" else "other"


def _by_shape(place: Place) -> str:
    out, inner = place.shape
    if re.search(_ATTENTION, place.path, re.IGNORECASE):
        return "qkv" if out == 3 * inner else "other"
    if re.search(_FEED_FORWARD, place.path, re.IGNORECASE) and out != inner:
        return "up" if out > inner else "down"
    return "other"
