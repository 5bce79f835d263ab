"""Steering: this worker's way beside the library's, both in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.steer
    python -m benchmarks.steer --device cuda --dtype bfloat16

One steer request on a randomly initialised Gemma-2-shaped model with JumpReLU transcoders: read
the activations of six features, continue the prompt without and with them at four times that, and
have the predictions after every token. The library's way is `get_activations`, `generate`, a
second pass over the default text for its logits, and `feature_intervention_generate`, which by
default encodes every layer at every token; "lean" is without that (`return_activations=False`).
Ours runs on weights in the order that `lay_out_weights` gives them, the same bits otherwise; in the
column before it, on the weights as the library has them. The floor is the forward passes alone,
on ours: the prompt once and each token once, for one side.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformer_lens import HookedTransformerConfig
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformers import PreTrainedTokenizerFast

import steering
from benchmarks.measure import in_turns, machine
from loading.transformerlens_engine import lay_out_weights
from steering import Intervention, Options

D_VOCAB, TOP_K = 8000, 5


def build(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    n_heads = args.d_model // 64
    cfg = HookedTransformerConfig(
        n_layers=args.layers, d_model=args.d_model, n_ctx=512, d_head=64, n_heads=n_heads,
        n_key_value_heads=n_heads // 2, d_mlp=4 * args.d_model, d_vocab=D_VOCAB, act_fn="gelu",
        gated_mlp=True, normalization_type="RMS", final_rms=True,
        use_normalization_before_and_after=True, positional_embedding_type="rotary",
        rotary_dim=64, model_name="synthetic", device=args.device, dtype=dtype, seed=0,
    )  # fmt: skip
    transcoders = {}
    for layer in range(args.layers):
        threshold = torch.full((args.features,), 1.5)
        transcoders[layer] = SingleLayerTranscoder(
            args.d_model, args.features, JumpReLU(threshold, 0.1), layer, device=device, dtype=dtype
        )
        for parameter in transcoders[layer].parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=args.d_model**-0.5)
    model = TransformerLensReplacementModel.from_config(
        cfg, TranscoderSet(transcoders, "ln2.hook_normalized", "hook_mlp_out")
    )
    vocab = {"<bos>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, D_VOCAB)}}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    model.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>",
        padding_side="right",
    )  # fmt: skip
    cfg.tokenizer_prepends_bos = True
    return model


def features_of(model: Any, ids: list[int]) -> list[tuple[int, int, int]]:
    """Six active features over the layers, (layer, position, index)."""
    _, activations = model.get_activations(torch.tensor(ids, device=model.cfg.device))
    layers = torch.linspace(0, model.cfg.n_layers - 1, 6).long().tolist()
    return [
        (layer, position, int(activations[layer, position].argmax()))
        for position, layer in enumerate(layers, start=2)
    ]


Result = tuple[list[int], list[int], list[list[int]]]  # default ids, steered ids, predictions


def library_way(
    model: Any,
    ids: list[int],
    features: list[tuple[int, int, int]],
    n_tokens: int,
    frozen: bool,
    **options: Any,
) -> Result:
    prompt = " ".join(f"w{i}" for i in ids[1:])
    greedy = {"do_sample": False, "stop_at_eos": False, "verbose": False}
    _, activations = model.get_activations(prompt, sparse=True)
    interventions = [
        (layer, position, index, 4 * activations[layer, position, index])
        for layer, position, index in features
    ]
    tokens = torch.tensor([ids], device=model.cfg.device)
    default = model.generate(tokens, max_new_tokens=n_tokens, **greedy)
    text, steered_logits, _ = model.feature_intervention_generate(
        prompt,
        interventions,
        freeze_attention=frozen,
        max_new_tokens=n_tokens + 1,
        **greedy,
        **options,
    )
    with torch.inference_mode():
        default_logits = model(default)[0, len(ids) - 1 :]
    predictions = [
        step.float().softmax(dim=-1).topk(TOP_K).indices.tolist()
        for logits in (default_logits, steered_logits)
        for step in logits
    ]
    # The text leaves special tokens out; its last token is the one that was asked for in excess.
    steered = [ids[0], *(int(word[1:]) for word in text.split()[:-1])]
    return default[0].tolist(), steered, predictions


def our_way(
    model: Any, ids: list[int], features: list[tuple[int, int, int]], n_tokens: int, frozen: bool
) -> Result:
    values = steering.feature_activations(model, ids, features)
    interventions = [
        Intervention(layer, index, position, 4 * value)
        for (layer, position, index), value in zip(features, values, strict=True)
    ]
    options = Options(n_tokens, TOP_K, freeze_attention=frozen)
    default, steered = steering.generate_both(model, ids, interventions, options)
    predictions = default.top_ids.tolist() + steered.top_ids.tolist()
    return default.token_ids, steered.token_ids, predictions


def floor(model: Any, ids: list[int], n_tokens: int) -> None:
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)
    with torch.inference_mode():
        for new_ids in [ids] + [[3]] * n_tokens:
            tokens = torch.tensor([new_ids], device=model.cfg.device)
            model(tokens, attention_mask=torch.ones_like(tokens), past_kv_cache=cache)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--features", type=int, default=8192, help="features a layer")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=30, help="tokens to generate")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)

    model = build(args)
    laid_out = build(args)
    lay_out_weights(laid_out)
    ids = [0, *torch.randint(2, D_VOCAB, (args.prompt_tokens - 1,)).tolist()]
    features = features_of(model, ids)
    print(
        f"{args.layers} layers, d_model {args.d_model}, {args.features} features a layer, "
        f"{args.prompt_tokens} prompt tokens, {args.tokens} generated; {args.dtype}, "
        f"{machine(args.device)}; medians of {args.repeats}\n"
    )
    print("| attention | library | lean | ours, its weights | ours | floor | faster | than lean |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for frozen in (False, True):
        print_row(model, laid_out, ids, features, args, frozen)


def print_row(
    model: Any,
    laid_out: Any,
    ids: list[int],
    features: list[tuple[int, int, int]],
    args: argparse.Namespace,
    frozen: bool,
) -> None:
    case = (ids, features, args.tokens, frozen)
    ways: dict[str, Callable[[], Any]] = {
        "library": lambda: library_way(model, *case),
        "lean": lambda: library_way(model, *case, return_activations=False),
        "ours, its weights": lambda: our_way(model, *case),
        "ours": lambda: our_way(laid_out, *case),
        "floor": lambda: floor(laid_out, ids, args.tokens),
    }
    if args.dtype == "float32" and ways["library"]() != ways["ours"]():
        raise SystemExit("the two ways give different tokens or predictions")
    costs = in_turns(ways, args.repeats, args.device)
    took = {name: cost.seconds for name, cost in costs.items()}
    print(
        f"| {'frozen' if frozen else 'free'} | "
        + " | ".join(f"{seconds:.2f} s" for seconds in took.values())
        + f" | {took['library'] / took['ours']:.1f}× | {took['lean'] / took['ours']:.1f}× |",
        flush=True,
    )


if __name__ == "__main__":
    main()
