"""A plain, slow steer of a complete replacement model: the whole text anew for each token.

Written from the formulas, a head and a position at a time in float64. It shares no code with the
modules, and has no key-value cache, no batch, and no choice of rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attribution.complete import CompleteModel
from steering import Intervention


def activations_of(module: Any, x: Tensor) -> Tensor:
    """All activations (n_pos, d_sae) float64 of a module's inputs (n_pos, d_model)."""
    x = x.double()
    before = _lorsa_before(module, x) if hasattr(module, "W_Q") else _transcoder_before(module, x)
    activation, judged = module.activation, before
    if activation.times_decoder_norm:
        every = torch.arange(before.shape[1])
        judged = before * module.decoder.rows(every).double().norm(dim=1)
    if activation.name == "topk":
        least = judged.sort(dim=1, descending=True).values[
            :, activation.top_k - 1 : activation.top_k
        ]
        return torch.where((judged >= least) & (judged > 0), before, 0.0)
    threshold = 0.0 if activation.threshold is None else activation.threshold.double()
    return torch.where(judged > threshold, before, 0.0)


def _transcoder_before(module: Any, x: Tensor) -> Tensor:
    before = x @ module.W_E.double().T + module.b_E.double()
    if module.W_E_glu is None:
        return before
    return before * (x @ module.W_E_glu.double().T + module.b_E_glu.double()).sigmoid()


def _lorsa_before(module: Any, x: Tensor) -> Tensor:
    values = x @ module.W_V.double().T + module.b_V.double()
    before = torch.zeros_like(values)
    n_heads = len(module.W_Q)
    n_grouped = values.shape[1] // n_heads
    for head in range(n_heads):
        q = _turned(module, x @ module.W_Q[head].double(), head, "Q")
        k = _turned(module, x @ module.W_K[head].double(), head, "K")
        own = slice(head * n_grouped, (head + 1) * n_grouped)
        for p in range(len(x)):
            pattern = (k[: p + 1] @ q[p] / module.attn_scale).softmax(0)
            before[p, own] = pattern @ values[: p + 1, own]
    return before


def _turned(module: Any, vectors: Tensor, head: int, side: str) -> Tensor:
    vectors = vectors + (module.b_Q if side == "Q" else module.b_K)[head].double()
    gain = module.q_gain if side == "Q" else module.k_gain
    if gain is not None:
        scale = (vectors.square().mean(1, keepdim=True) + module.eps).sqrt()
        vectors = vectors / scale * gain[head].double()
    rotary = module.rotary
    if rotary is None:
        return vectors
    turned, n = vectors.clone(), rotary.cos.shape[1]
    for d in range(n):
        if rotary.adjacent_pairs:
            other, sign = (d + 1, -1.0) if d % 2 == 0 else (d - 1, 1.0)
        else:
            other, sign = (d + n // 2, -1.0) if d < n // 2 else (d - n // 2, 1.0)
        cos, sin = (table[: len(vectors), d].double() for table in (rotary.cos, rotary.sin))
        turned[:, d] = vectors[:, d] * cos + sign * vectors[:, other] * sin
    return turned


def steered_logits(
    model: CompleteModel,
    ids: Sequence[int],
    n_prompt: int,
    interventions: Sequence[Intervention],
    *,
    freeze_attention: bool = False,
) -> Tensor:
    """Logits (n_after, d_vocab) after the prompt's last token and each later one of `ids`."""
    lm, tokens = model.language_model, torch.tensor([list(ids)], device=model.cfg.device)
    hooks: list[tuple[str, Any]] = []
    if freeze_attention:
        hooks += _frozen_patterns(lm, tokens, n_prompt)
    for sublayer in {i.layer for i in interventions}:
        mine = [i for i in interventions if i.layer == sublayer]
        hooks += _setting(model, sublayer, mine, n_prompt)
    with torch.no_grad(), lm.hooks(hooks):
        return lm(tokens)[0, n_prompt - 1 :]


def _frozen_patterns(lm: Any, tokens: Tensor, n_prompt: int) -> list[tuple[str, Any]]:
    names = [f"blocks.{n}.attn.hook_pattern" for n in range(lm.cfg.n_layers)]
    seen: dict[str, Tensor] = {}

    def keep(pattern: Tensor, hook: Any) -> None:
        seen[hook.name] = pattern[:, :, :n_prompt].clone()

    with torch.no_grad(), lm.hooks([(name, keep) for name in names]):
        lm(tokens)

    def frozen(pattern: Tensor, hook: Any) -> Tensor:
        pattern = pattern.clone()
        pattern[:, :, :n_prompt] = seen[hook.name]
        return pattern

    return [(name, frozen) for name in names]


def _setting(
    model: CompleteModel, sublayer: int, interventions: Sequence[Intervention], n_prompt: int
) -> list[tuple[str, Any]]:
    layer, is_mlp = divmod(sublayer, 2)
    module, seen = model.module(sublayer), []

    def read(x: Tensor, hook: Any) -> None:
        seen.append(x[0])

    def write(output: Tensor, hook: Any) -> Tensor:
        activations = activations_of(module, seen[-1])
        at: dict[tuple[int, int], float] = {}  # of two on one feature the last counts
        for i in interventions:
            where = range(n_prompt, output.shape[1]) if i.position is None else [i.position]
            at |= {(position, i.index): i.value for position in where}
        added = torch.zeros(output.shape[1:], dtype=torch.float64)
        for (position, index), value in at.items():
            change = value - activations[position, index]
            added[position] += change * module.decoder.rows(torch.tensor([index]))[0].double()
        return (output.double() + added).to(output.dtype)

    ln, out = ("ln2", "hook_mlp_out") if is_mlp else ("ln1", "hook_attn_out")
    return [(f"blocks.{layer}.{ln}.hook_normalized", read), (f"blocks.{layer}.{out}", write)]
