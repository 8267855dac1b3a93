"""transformers 4.57: Llama and GPT-2 over item ids with an attention mask."""

from __future__ import annotations

import torch
from subject import Maker, Size, Subject
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

ITEMS = 500


class Step(nn.Module):
    """The loss of the next item; its labels are -100 where padded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        return loss


class Logits(nn.Module):
    """Logits of every place: what a server calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits


def llama(n: int, attention: str) -> nn.Module:
    config = LlamaConfig(
        vocab_size=ITEMS, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=n, attn_implementation=attention, use_cache=False, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2(n: int, attention: str) -> nn.Module:
    config = GPT2Config(
        vocab_size=ITEMS, n_embd=128, n_layer=2, n_head=4, n_positions=n, attn_implementation=attention,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # else it warns, which breaks Dynamo's graph
    return model


def maker(kind: str, attention: str, side: str, logits: bool = False) -> Maker:
    def make(size: Size) -> Subject:
        model = {"llama": llama, "gpt2": gpt2}[kind](size.n, attention)
        mask = size.mask(side)
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(1, ITEMS, mask.shape, generator=generator) * mask
        if logits:
            return Subject(Logits(model), (ids, mask.long()), {"ids": "mask"})
        follows = mask & torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], 1)  # the first item follows nothing
        return Subject(Step(model), (ids, mask.long(), torch.where(follows, ids, -100)))

    return make


CASES: dict[str, Maker] = {
    f"{name}, {attention}, padded {side}": maker(kind, attention, side)
    for kind, name in (("llama", "Llama"), ("gpt2", "GPT-2"))
    for attention in ("sdpa", "eager")
    for side in ("right", "left")
} | {"Llama, sdpa, logits": maker("llama", "sdpa", "right", logits=True)}
