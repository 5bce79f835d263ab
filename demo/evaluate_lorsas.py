"""Measure the demo's Lorsas: python -m demo.evaluate_lorsas"""

from dataclasses import dataclass

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from demo.athlete_features import carriers, exchange
from demo.evaluate import HELD_OUT_DOCUMENTS, HELD_OUT_SEED, share_explained
from demo.lorsas import Lorsa, load_committed
from demo.train_lorsas import record_documents
from loading.registry import DEMO


@dataclass(frozen=True)
class Fit:
    """How well a Lorsa does on documents that it wasn't trained on; shares are of one."""

    explained: float
    explained_without_bos: float
    silent: float
    active: float
    active_without_bos: float


def load_model() -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The demo's language model in Hugging Face's own code."""
    model = Qwen3ForCausalLM.from_pretrained(DEMO.model, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(DEMO.model)


@torch.no_grad()
def fits(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, lorsas: list[Lorsa]
) -> list[Fit]:
    """Each layer's fit on held-out documents, from the first layer to the last."""
    by_layer = record_documents(model, tokenizer, HELD_OUT_DOCUMENTS, HELD_OUT_SEED)
    found = []
    for lorsa, records in zip(lorsas, by_layer, strict=True):
        acts = [lorsa.encode(seen.inputs) for seen in records]
        flat = torch.cat([part.flatten(0, 1) for part in acts])
        outputs = torch.cat([seen.outputs.flatten(0, 1) for seen in records])
        after_bos = torch.cat([torch.arange(part.shape[1]).repeat(len(part)) for part in acts]) > 0
        active = (flat > 0).sum(1).float()
        found.append(
            Fit(
                explained=share_explained(outputs, lorsa.decode(flat)),
                explained_without_bos=share_explained(
                    outputs[after_bos], lorsa.decode(flat[after_bos])
                ),
                silent=float((flat == 0).all(0).float().mean()),
                active=float(active.mean()),
                active_without_bos=float(active[after_bos].mean()),
            )
        )
    return found


def main() -> None:
    model, tokenizer = load_model()
    lorsas = load_committed()
    for layer, fit in enumerate(fits(model, tokenizer, lorsas)):
        print(
            f"layer {layer}: {fit.explained:.1%} of variance, {fit.explained_without_bos:.1%} "
            f"without BOS, {fit.silent:.1%} of features silent, {fit.active:.1f} active a token, "
            f"{fit.active_without_bos:.1f} without BOS"
        )
    for language in ("fr", "es"):
        for layer, carried in enumerate(carriers(model, tokenizer, lorsas, language)):
            print(
                f"{language}, layer {layer}: {carried.prompts} prompts with features that carry "
                f"the athlete, {carried.mean:.1f} each, in all {carried.features} features, "
                f"{carried.of_one_athlete} of them for one athlete alone; alike by "
                f"{carried.alike_same_sport:.0%} within a sport and by "
                f"{carried.alike_other_sport:.0%} between sports"
            )
        turned = exchange(model, tokenizer, lorsas, language)
        print(
            f"{language}: exchanged, they give the other sport in {turned.by_carrying} of "
            f"{turned.pairs} pairs, all other features in {turned.by_others}"
        )
        print(f"{language}: those of the layers 1 and 2 alone in {turned.by_middle_layers}")
        for n, count in turned.by_strongest.items():
            print(f"{language}: the {n} strongest each way alone in {count}")


if __name__ == "__main__":
    main()
