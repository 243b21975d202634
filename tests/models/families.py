"""One tiny random classifier of every model family that packed rows are promised for."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from palate.models.reward_model import ONE_REWARD, as_reward_model

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "attention_dropout": 0.0,
}
COMMON: dict[str, Any] = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 1}
ENCODER_SIZES = {key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "attention_dropout")}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = 8  # shorter than the longest sequences of the tests, longer than the shortest

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2 window": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral": ("Mistral", {"head_dim": 8, "sliding_window": WINDOW}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3Text", {"head_dim": 8, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "olmo2": ("Olmo2", {}),
    "phi3": ("Phi3", {}),
    "smollm3": ("SmolLM3", {}),
    "gpt_oss": (
        "GptOss",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 8, **EXPERTS}),
    "gpt2": ("GPT2", {"n_positions": 512, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", NO_DROPOUT),
    "roberta": ("Roberta", NO_DROPOUT),
    "modernbert": ("ModernBert", {"local_attention": WINDOW, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2}),
}
FAMILIES = DECODERS | ENCODERS


def family(name: str, **changes: Any) -> Any:
    """A random reward model of a family, in evaluation mode; of `num_labels` outputs where more than one is asked for."""
    kind, own = FAMILIES[name]
    if name == "gpt2":
        sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    else:
        sizes = ENCODER_SIZES if name in ENCODERS else SIZES
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**COMMON, **sizes, **own, **changes})
    outputs = ONE_REWARD if config.num_labels == 1 else [f"output {i}" for i in range(config.num_labels)]
    return as_reward_model(getattr(transformers, f"{kind}ForSequenceClassification")(config), outputs).eval()
