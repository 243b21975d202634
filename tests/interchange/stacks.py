"""What other stacks save, and the rewards that they read from it: each written after its own source, with nothing of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.conftest import DECODER, chatml_tokenizer, llama_tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

Reward = Callable[[list[dict[str, str]]], float]
"""The reward of a chat as the stack itself reads it."""

CHATS = [
    [{"role": "user", "content": "what is paris?"}, {"role": "assistant", "content": "the capital of france"}],
    [{"role": "user", "content": "what is paris?"}, {"role": "assistant", "content": "No, go away, you fool"}],
    [
        {"role": "user", "content": "a poem"},
        {"role": "assistant", "content": "the sea"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "the wind"},
    ],
]


def backbone(kind: str, tokenizer: Any, language_model: bool = False, **config: Any) -> Any:
    """A random base model, or language model, for a tokenizer."""
    torch.manual_seed(7)
    sizes = {**DECODER, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, **config}
    if kind == "qwen3":
        made = Qwen3Config(**sizes, head_dim=8, bos_token_id=None)
        return (Qwen3ForCausalLM if language_model else Qwen3Model)(made).eval()
    made = LlamaConfig(**sizes, bos_token_id=tokenizer.bos_token_id)
    return (LlamaForCausalLM if language_model else LlamaModel)(made).eval()


def hidden(model: Any, ids: list[int]) -> torch.Tensor:
    """Last hidden states of one sequence. [L, H]"""
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]


def edit_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


# --- OpenRLHF: its own class around the base model, the head beside it, mean and std in the config ---


def openrlhf(folder: Path, kind: str = "llama", prefix: str = "score") -> Reward:
    tokenizer = llama_tokenizer() if kind == "llama" else chatml_tokenizer()
    model = backbone(kind, tokenizer)
    head = torch.randn(1, 32)

    class RewardModel(type(model).__base__):  # type: ignore[misc]
        def __init__(self, config: Any):
            super().__init__(config)
            self.model = model
            setattr(self, prefix, nn.Linear(32, 1, bias=False))

    wrapped = RewardModel(model.config)
    getattr(wrapped, prefix).weight.data = head
    wrapped.save_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # get_tokenizer of openrlhf/utils/utils.py
    tokenizer.save_pretrained(folder)
    edit_config(folder, mean=1.5, std=2.5, normalize_reward=False)

    def reward(chat: list[dict[str, str]]) -> float:
        text = tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n")
        if not text.endswith(tokenizer.eos_token):
            text += " " + tokenizer.eos_token
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids[-1] = tokenizer.eos_token_id
        return float(hidden(model, ids)[-1] @ head[0])

    return reward


# --- LLaMA-Factory: a language model (or its adapter) and TRL's old value head in a file of its own ---


def llamafactory(folder: Path, adapter_of: Path | None = None) -> Reward:
    tokenizer = chatml_tokenizer()
    model = backbone("qwen3", tokenizer, language_model=True)
    weight, bias = torch.randn(1, 32), torch.tensor([0.7])
    if adapter_of is None:
        model.save_pretrained(folder)
    else:
        from peft import LoraConfig, get_peft_model

        model.save_pretrained(adapter_of)
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        wrapped.peft_config["default"].base_model_name_or_path = str(adapter_of)
        wrapped.save_pretrained(folder)
        model = wrapped.merge_and_unload()
    tokenizer.save_pretrained(folder)
    save_file({"v_head.summary.weight": weight, "v_head.summary.bias": bias}, folder / "value_head.safetensors", metadata={"format": "pt"})

    def reward(chat: list[dict[str, str]]) -> float:
        ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]
        return float(hidden(model, ids)[-1] @ weight[0] + bias)

    return reward


# --- DeepSpeed-Chat: a pickle of rwtransformer.* and v_head.weight, a vocabulary of a multiple of 8 ---


def deepspeed_chat(folder: Path, *, llama_with_pad: bool, end_token: bool = False) -> Reward:
    """`llama_with_pad`: LlamaTokenizer's branch, [PAD] of its own. Else pad is EOS, and the token before it is read. `end_token`: --add_eot_token."""
    tokenizer = llama_tokenizer() if llama_with_pad else chatml_tokenizer()
    tokenizer.chat_template = None
    if llama_with_pad:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    else:
        tokenizer.pad_token = tokenizer.eos_token
    if end_token:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    model = backbone("llama" if llama_with_pad else "qwen3", tokenizer)
    model.resize_token_embeddings((len(tokenizer) + 7) // 8 * 8, mean_resizing=False)
    model.config.end_token_id, model.config.pad_token_id, model.config.n_embd = tokenizer.eos_token_id, model.config.eos_token_id, 32
    head = torch.randn(1, 32)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({f"rwtransformer.{k}": v for k, v in model.state_dict().items()} | {"v_head.weight": head}, folder / "pytorch_model.bin")
    model.config.to_json_file(folder / "config.json")
    tokenizer.save_pretrained(folder)

    def reward(chat: list[dict[str, str]]) -> float:
        names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
        text = "".join(names[m["role"]] + m["content"] for m in chat) + "<|endoftext|>"
        row = tokenizer(text, max_length=128, padding="max_length", truncation=True)["input_ids"]
        prompt = "".join(names[m["role"]] + m["content"] for m in chat[:-1]) + "\n\nAssistant:"
        after = len(tokenizer(prompt)["input_ids"])
        pads = [t for t in range(after, len(row)) if row[t] == tokenizer.pad_token_id]
        return float(hidden(model, row)[(pads[0] if pads else len(row)) - 1] @ head[0])

    return reward


# --- TRL, open-instruct: transformers' own classifier ---


def classifier(folder: Path, kind: str, *, pad: str | None, card: bool = False, before_pad: bool = False, labels: bool = False) -> Reward:
    """As TRL saves it: no problem_type, one label LABEL_0 (`labels` False: id2label left out, as older tools do), `pad` in tokenizer and config."""
    tokenizer = llama_tokenizer() if kind == "llama" else chatml_tokenizer()
    tokenizer.pad_token = pad
    torch.manual_seed(5)
    base = backbone(kind, tokenizer, num_labels=1)
    model: PreTrainedModel
    if kind == "llama":
        model = LlamaForSequenceClassification(base.config)
    else:
        from transformers import Qwen3ForSequenceClassification

        model = Qwen3ForSequenceClassification(base.config)
    model = model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not labels:
        edit_config(folder, id2label=..., label2id=...)
    if card:
        (folder / "README.md").write_text("---\nlibrary_name: transformers\ntags:\n- generated_from_trainer\n- trl\n- reward-trainer\n---\n\n# A model\n")

    def reward(chat: list[dict[str, str]]) -> float:
        ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]
        if before_pad:  # open-instruct's get_reward, one row: values of all tokens, the one before the first pad behind the prompt
            prompt = tokenizer(tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True), add_special_tokens=False)["input_ids"]
            pads = [t for t in range(len(prompt), len(ids)) if ids[t] == tokenizer.pad_token_id]
            with torch.no_grad():
                return float(model.score(hidden(model.model, ids))[(pads[0] if pads else len(ids)) - 1])
        with torch.no_grad():
            return float(model(torch.tensor([ids])).logits[0, 0])

    return reward
