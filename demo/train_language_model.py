"""Train the demo's language model: a Qwen3 of four layers, stopped early.

Stopping early matters: trained on, the MLPs grow outlier norms, and neither transcoders nor steers
work as well on them.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from demo.corpus import documents

CONTEXT = 512


@dataclass(frozen=True)
class LanguageModelTraining:
    steps: int = 320
    rows: int = 64
    row_length: int = 64
    learning_rate: float = 5e-3
    warmup_steps: int = 30
    weight_decay: float = 0.3
    seed: int = 0


@dataclass(frozen=True)
class Packed:
    """Documents side by side in rows; each tensor has shape (rows, row_length).

    `document` numbers the documents of a row from 1; 0 is padding.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    document: torch.Tensor

    def attention_mask(self) -> torch.Tensor:
        """Boolean (rows, 1, row_length, row_length): earlier tokens of the same document."""
        same = self.document[:, :, None] == self.document[:, None, :]
        return (same & torch.ones_like(same).tril())[:, None]

    def labels(self) -> torch.Tensor:
        """The tokens, with -100 where a document begins and where there is padding."""
        return self.tokens.masked_fill((self.positions == 0) | (self.document == 0), -100)


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, document: str | list[dict[str, str]]) -> list[int]:
    """The ids of one document, from BOS to EOS."""
    text = (
        document
        if isinstance(document, str)
        else str(tokenizer.apply_chat_template(document, tokenize=False))
    )
    has_bos = text.startswith(str(tokenizer.bos_token))
    ids: list[int] = tokenizer(text, add_special_tokens=not has_bos).input_ids
    return [*ids, int(tokenizer.eos_token_id)]


def encoded_documents(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[list[int]]:
    """The ids of one document after another, without end."""
    for document in documents(rng):
        yield encode(tokenizer, document)


def pack(encoded: Iterator[list[int]], rows: int, row_length: int) -> Packed:
    """Fill `rows` rows; a row ends at the first document that won't fit, which is dropped."""
    shape = (rows, row_length)
    packed = Packed(*(torch.zeros(shape, dtype=torch.long) for _ in range(3)))
    for row in range(rows):
        start, number = 0, 1
        while (end := start + len(ids := next(encoded))) <= row_length:
            packed.tokens[row, start:end] = torch.tensor(ids)
            packed.positions[row, start:end] = torch.arange(len(ids))
            packed.document[row, start:end] = number
            start, number = end, number + 1
    return packed


def train_language_model(
    tokenizer: PreTrainedTokenizerFast, training: LanguageModelTraining
) -> Qwen3ForCausalLM:
    """Return the trained model, in evaluation mode."""
    torch.manual_seed(training.seed)
    encoded = encoded_documents(tokenizer, random.Random(training.seed))
    model = build_model(tokenizer).train()
    optimizer = torch.optim.AdamW(
        _decay_groups(model, training.weight_decay),
        lr=training.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, training))
    for step in range(training.steps):
        batch = pack(encoded, training.rows, training.row_length)
        loss = model(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            attention_mask=batch.attention_mask(),
            labels=batch.labels(),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == training.steps - 1:
            print(f"language model: step {step}, loss {loss.item():.3f}", flush=True)
    return model.eval()


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gains = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]


def _rate(step: int, training: LanguageModelTraining) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))
