"""Train one transcoder a layer on the language model's MLPs: BatchTopK, then JumpReLU.

BatchTopK (Bussmann et al. 2024): a batch of n tokens keeps its n x k largest activations, so a
token takes as many features as it needs. A threshold on each activation stands in for the batch
once training is over.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from circuit_tracer.transcoder import SingleLayerTranscoder
from circuit_tracer.transcoder.activation_functions import JumpReLU
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from demo.sparse_training import auxiliary_loss, constant_then_falling
from demo.train_language_model import encoded_documents, pack


@dataclass(frozen=True)
class TranscoderTraining:
    """`active` features a token; a feature silent for `dead_after` steps counts as dead."""

    width: int = 1024
    active: int = 10
    steps: int = 1500
    batch_tokens: int = 512
    learning_rate: float = 1e-3
    dead_after: int = 50
    auxiliary_active: int = 32
    auxiliary_weight: float = 1.0
    rows: int = 2048
    seed: int = 1


def layer_trainings() -> list[TranscoderTraining]:
    """How each layer's transcoder is trained, from the first layer to the last.

    The steer reads the last two, and turns an answer best with features of layer 2, which layer 3's
    MLP follows. So layer 2 has half the active features, that one may hold an answer which more
    would share, and layer 3 stops early, before its features outgrow those of layer 2.
    """
    early = TranscoderTraining(steps=3000)
    steered = TranscoderTraining(auxiliary_weight=1 / 32)
    return [early, early, replace(steered, active=5, steps=3000), replace(steered, steps=600)]


@dataclass(frozen=True)
class MlpActivations:
    """What one MLP reads and writes, each (tokens, d_model); BOS and padding are left out."""

    inputs: torch.Tensor
    outputs: torch.Tensor


@torch.no_grad()
def collect(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: int, seed: int
) -> list[MlpActivations]:
    """Run the model over fresh documents and return each layer's MLP inputs and outputs."""
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in model.model.layers]
    encoded = encoded_documents(tokenizer, random.Random(seed))
    kept = torch.empty(0)

    def record(layer: int, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        seen[layer].append((inputs[kept], outputs[kept]))

    hooks = [
        layer.mlp.register_forward_hook(
            lambda _, inputs, outputs, index=index: record(index, inputs[0], outputs)
        )
        for index, layer in enumerate(model.model.layers)
    ]
    try:
        for _ in range(rows // 64):
            batch = pack(encoded, 64, 64)
            kept = (batch.positions > 0) & (batch.document > 0)
            model(
                input_ids=batch.tokens,
                position_ids=batch.positions,
                attention_mask=batch.attention_mask(),
            )
    finally:
        for hook in hooks:
            hook.remove()
    return [
        MlpActivations(*(torch.cat(parts) for parts in zip(*layer, strict=True))) for layer in seen
    ]


class _Trainee(nn.Module):
    """A transcoder in training, on outputs scaled to unit mean square."""

    def __init__(self, data: MlpActivations, training: TranscoderTraining) -> None:
        super().__init__()
        d_model = data.inputs.shape[1]
        self.training_settings = training
        centred = data.outputs - data.outputs.mean(0)
        self.scale = centred.square().sum(1).mean().sqrt()
        directions = functional.normalize(torch.randn(training.width, d_model), dim=1)
        self.W_dec = nn.Parameter(directions)
        self.W_enc = nn.Parameter(directions * 0.1)
        self.b_enc = nn.Parameter(torch.zeros(training.width))
        self.b_dec = nn.Parameter(data.outputs.mean(0) / self.scale)
        self.silent_steps = torch.zeros(training.width, dtype=torch.long)

    def loss(self, inputs: torch.Tensor, outputs: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The batch's loss, and the smallest activation that it kept."""
        settings = self.training_settings
        target = outputs / self.scale
        before = functional.linear(inputs, self.W_enc, self.b_enc)
        positive = functional.relu(before)
        bound = positive.flatten().topk(settings.active * len(inputs), sorted=True).values[-1]
        acts = positive * (positive >= bound)
        error = target - (acts @ self.W_dec + self.b_dec)
        loss = error.square().sum(1).mean()
        self.silent_steps += 1
        self.silent_steps[(acts > 0).any(0)] = 0
        dead = self.silent_steps > settings.dead_after
        if dead.sum() >= settings.auxiliary_active:
            loss = loss + settings.auxiliary_weight * auxiliary_loss(
                before[:, dead], error.detach(), self.W_dec[dead], settings.auxiliary_active
            )
        return loss, bound.item()

    @torch.no_grad()
    def renormalise(self) -> None:
        """Keep decoder vectors at length one, so that an activation is a length."""
        self.W_dec.copy_(functional.normalize(self.W_dec, dim=1))

    @torch.no_grad()
    def finished(self, layer: int, threshold: float, data: MlpActivations) -> SingleLayerTranscoder:
        """Undo the scaling, set the thresholds and order features by how often they fire.

        A decoder vector keeps length one; what was scaled moves into the encoder.
        """
        fires = functional.linear(data.inputs, self.W_enc, self.b_enc) > threshold
        order = fires.sum(0).argsort(descending=True, stable=True)
        width, d_model = self.W_dec.shape
        transcoder = SingleLayerTranscoder(
            d_model,
            width,
            JumpReLU(torch.full((width,), threshold * float(self.scale)), 0.1),
            layer,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        transcoder.W_enc.copy_(self.W_enc[order] * self.scale)
        transcoder.b_enc.copy_(self.b_enc[order] * self.scale)
        transcoder.W_dec.copy_(self.W_dec[order])
        transcoder.b_dec.copy_(self.b_dec * self.scale)
        return transcoder


def train_transcoder(
    layer: int, data: MlpActivations, training: TranscoderTraining
) -> SingleLayerTranscoder:
    """Return the trained transcoder of one layer."""
    torch.manual_seed(training.seed + layer)
    trainee = _Trainee(data, training)
    optimizer = torch.optim.Adam(trainee.parameters(), lr=training.learning_rate)
    schedule = constant_then_falling(optimizer, training.steps)
    bounds = []
    for step, batch in enumerate(_batches(len(data.inputs), training)):
        loss, bound = trainee.loss(data.inputs[batch], data.outputs[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        trainee.renormalise()
        if step >= training.steps - 100:
            bounds.append(bound)
        if step % 500 == 0 or step == training.steps - 1:
            dead = int((trainee.silent_steps > training.dead_after).sum())
            print(f"layer {layer}: step {step}, loss {loss.item():.4f}, dead {dead}", flush=True)
    return trainee.finished(layer, sum(bounds) / len(bounds), data)


def _batches(tokens: int, training: TranscoderTraining) -> Iterator[torch.Tensor]:
    for _ in range(training.steps):
        yield torch.randint(tokens, (training.batch_tokens,))
