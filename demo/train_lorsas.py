"""Train a Lorsa for each attention of the demo's language model: python -m demo.train_lorsas

A Lorsa's patterns are the model's own heads, copied and not trained. So whatever its features do,
they look where the model looked, and training needs only the mean input that each head sees.
"""

import argparse
import itertools
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from demo.lorsas import COMMITTED, Lorsa, LorsaShape
from demo.sparse_training import auxiliary_loss, constant_then_falling
from demo.train_language_model import encoded_documents


@dataclass(frozen=True)
class LorsaTraining:
    """Of the features trained, those most often active are kept: of the others many are dead.

    A feature silent for `dead_after` steps counts as dead.
    """

    trained_features: int = 768
    kept_features: int = 480
    active: int = 10
    steps: int = 2500
    batch_tokens: int = 512
    learning_rate: float = 1e-3
    dead_after: int = 50
    auxiliary_active: int = 32
    documents: int = 4000
    seed: int = 1


@dataclass(frozen=True)
class AttentionRecord:
    """What one attention reads and adds, each (batch, position, d_model).

    Inputs are divided by their scale and have no gain, as a Lorsa reads them.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor


@torch.no_grad()
def record(model: Qwen3ForCausalLM, tokens: torch.Tensor) -> list[AttentionRecord]:
    """Run (batch, position) tokens and return what each layer's attention read and added."""
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    eps = model.config.rms_norm_eps

    def keep_input(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        scale = (arguments[0].square().mean(-1, keepdim=True) + eps).sqrt()
        inputs.append(arguments[0] / scale)

    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.input_layernorm.register_forward_pre_hook(keep_input))
        hooks.append(
            layer.self_attn.o_proj.register_forward_hook(lambda *call: outputs.append(call[2]))
        )
    try:
        model(input_ids=tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return [AttentionRecord(*pair) for pair in zip(inputs, outputs, strict=True)]


def record_documents(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, seed: int
) -> list[list[AttentionRecord]]:
    """Per layer, the records of fresh documents. Each has a row of its own, BOS included.

    Documents of equal length share a batch, because a Lorsa's mask knows neither padding nor
    several documents in a row.
    """
    encoded = encoded_documents(tokenizer, random.Random(seed))
    documents = sorted(itertools.islice(encoded, count), key=len)
    batches = [
        record(model, tokens)
        for _, group in itertools.groupby(documents, key=len)
        for tokens in torch.tensor(list(group)).split(64)
    ]
    return [list(layer) for layer in zip(*batches, strict=True)]


@torch.no_grad()
def start(model: Qwen3ForCausalLM, layer: int, training: LorsaTraining) -> Lorsa:
    """A Lorsa with the model's patterns, whose features read what the model's heads write."""
    config, attention = model.config, model.model.layers[layer].self_attn
    shape = LorsaShape(
        d_model=config.hidden_size,
        n_features=training.trained_features,
        top_k=training.active,
        n_patterns=config.num_attention_heads,
        d_head=config.head_dim,
        n_context=config.max_position_embeddings,
        rotary_base=config.rope_theta,
        eps=config.rms_norm_eps,
    )
    gain = model.model.layers[layer].input_layernorm.weight
    shared = shape.n_patterns // config.num_key_value_heads

    def by_head(projection: nn.Linear, repeats: int) -> torch.Tensor:
        weight = (projection.weight * gain).unflatten(0, (-1, shape.d_head))
        return weight.repeat_interleave(repeats, 0).transpose(1, 2)

    lorsa = Lorsa(shape)
    lorsa.W_Q.copy_(by_head(attention.q_proj, 1))
    lorsa.W_K.copy_(by_head(attention.k_proj, shared))
    lorsa.ln_q["w"].copy_(attention.q_norm.weight.expand(shape.n_patterns, -1))
    lorsa.ln_k["w"].copy_(attention.k_norm.weight.expand(shape.n_patterns, -1))
    lorsa.W_O.copy_(functional.normalize(torch.randn_like(lorsa.W_O), dim=1))
    writes = attention.o_proj.weight.T.unflatten(0, (shape.n_patterns, -1))
    reads = by_head(attention.v_proj, shared) @ writes
    directions = lorsa.W_O.unflatten(0, (shape.n_patterns, -1)) @ reads.transpose(1, 2)
    lorsa.W_V.copy_(0.1 * functional.normalize(directions.flatten(0, 1), dim=1))
    return lorsa


def train_lorsa(
    model: Qwen3ForCausalLM, layer: int, records: list[AttentionRecord], training: LorsaTraining
) -> Lorsa:
    """Return the trained Lorsa of one layer."""
    torch.manual_seed(training.seed + layer)
    lorsa = start(model, layer, training)
    with torch.no_grad():
        attended = torch.cat([lorsa.attended(record.inputs).flatten(0, 1) for record in records])
    outputs = torch.cat([record.outputs.flatten(0, 1) for record in records])
    scale = (outputs - outputs.mean(0)).square().sum(1).mean().sqrt()
    targets = outputs / scale
    lorsa.b_D.data.copy_(targets.mean(0))
    _fit(lorsa, attended, targets, training)
    lorsa = _narrowed(lorsa, attended, training.kept_features)
    for scaled in (lorsa.W_V, lorsa.b_V, lorsa.b_D):
        scaled.data.mul_(scale)
    return lorsa


def _fit(
    lorsa: Lorsa, attended: torch.Tensor, targets: torch.Tensor, training: LorsaTraining
) -> None:
    """Train what features read and write, on (token, pattern, d_model) and (token, d_model)."""
    trained = [lorsa.W_V, lorsa.b_V, lorsa.W_O, lorsa.b_D]
    optimizer = torch.optim.Adam(trained, lr=training.learning_rate)
    schedule = constant_then_falling(optimizer, training.steps)
    silent_steps = torch.zeros(lorsa.shape.n_features, dtype=torch.long)
    for step in range(training.steps):
        batch = torch.randint(len(targets), (training.batch_tokens,))
        before = lorsa.before_top_k(attended[batch])
        acts = lorsa.activate(before)
        error = targets[batch] - lorsa.decode(acts)
        loss = error.square().sum(1).mean()
        silent_steps += 1
        silent_steps[(acts > 0).any(0)] = 0
        dead = silent_steps > training.dead_after
        if dead.sum() >= training.auxiliary_active:
            loss = loss + auxiliary_loss(
                before[:, dead], error.detach(), lorsa.W_O[dead], training.auxiliary_active
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        # Of length one, so that an activation is a length.
        lorsa.W_O.data.copy_(functional.normalize(lorsa.W_O.data, dim=1))
        if step % 500 == 0 or step == training.steps - 1:
            print(f"step {step}, loss {loss.item():.4f}, dead {int(dead.sum())}", flush=True)


@torch.no_grad()
def _narrowed(lorsa: Lorsa, attended: torch.Tensor, n_features: int) -> Lorsa:
    """The Lorsa of those features of each pattern that are most often active, these first."""
    parts = attended.split(4096)
    fires = sum((lorsa.activate(lorsa.before_top_k(part)) > 0).sum(0) for part in parts)
    per_pattern = torch.as_tensor(fires).unflatten(0, (lorsa.shape.n_patterns, -1))
    order = per_pattern.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(lorsa.shape.n_patterns)[:, None] * per_pattern.shape[1]
    kept = (order[:, : n_features // lorsa.shape.n_patterns] + first).flatten()
    narrow = Lorsa(replace(lorsa.shape, n_features=n_features))
    weights = lorsa.state_dict()
    narrow.load_state_dict(
        {**weights, **{name: weights[name][kept] for name in ("W_V", "W_O", "b_V")}}
    )
    return narrow


def train_and_save_lorsas(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, root: Path
) -> None:
    """Train a Lorsa for each layer and write them as llamascopium lays them out."""
    training = LorsaTraining()
    records = record_documents(model, tokenizer, training.documents, training.seed)
    for layer, layer_records in enumerate(records):
        lorsa = train_lorsa(model, layer, layer_records, training)
        print(f"layer {layer}: {lorsa.save(root, layer)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=COMMITTED)
    parser.add_argument("--model", type=Path, default=COMMITTED.parent / "model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Sums in one order: the same weights from the same seed.
    model = Qwen3ForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    train_and_save_lorsas(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
