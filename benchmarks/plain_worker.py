"""The worker that cold_start.py compares with: circuit-tracer and runpod, put together plainly.

    python benchmarks/plain_worker.py --test_input '{"input": {"prompt": "..."}}'

It imports what the libraries' documentation imports, and loads the demo model in the plainest way
that works for a directory: TransformerLens's loader takes official names only, so its configuration
is written out here. It prints a line as each stage is done.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import runpod
import torch
import yaml
from circuit_tracer import ReplacementModel, attribute  # noqa: F401 - as the documentation has it
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.utils import create_graph_files
from circuit_tracer.utils.hf_utils import load_transcoders
from transformer_lens import HookedTransformerConfig
from transformer_lens.loading_from_pretrained import get_pretrained_state_dict
from transformers import AutoModelForCausalLM

print("imported", flush=True)

DEMO = Path(__file__).parent.parent / "demo"


def load_model() -> TransformerLensReplacementModel:
    directory = DEMO / "model"
    hf_model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    c = hf_model.config
    cfg = HookedTransformerConfig(
        model_name="demo",
        tokenizer_name=str(directory),
        original_architecture="Qwen3ForCausalLM",
        n_layers=c.num_hidden_layers,
        d_model=c.hidden_size,
        n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads,
        d_head=c.head_dim,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        n_ctx=c.max_position_embeddings,
        eps=c.rms_norm_eps,
        act_fn=c.hidden_act,
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=c.head_dim,
        rotary_base=c.rope_theta,
        use_qk_norm=True,
        default_prepend_bos=False,
    )
    model = TransformerLensReplacementModel(cfg)
    state = get_pretrained_state_dict(str(directory), cfg, hf_model=hf_model)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    config = yaml.safe_load((DEMO / "transcoders" / "config.yaml").read_text())
    n_layers = range(c.num_hidden_layers)
    files = [str(DEMO / "transcoders" / f"layer_{layer}.safetensors") for layer in n_layers]
    transcoders = load_transcoders(
        {**config, "transcoders": files}, device=torch.device("cpu"), dtype=torch.float32
    )
    model._configure_replacement_model(transcoders)
    return model


model = load_model()
print("loaded", flush=True)


def handler(job: dict[str, Any]) -> dict[str, Any]:
    tokens = model.tokenizer(job["input"]["prompt"], return_tensors="pt").input_ids[0]
    if job["input"]["action"] == "forward-pass":
        with torch.no_grad():
            top = model(tokens[None])[0, -1].softmax(-1).topk(10)
        words = [model.tokenizer.decode(i) for i in top.indices]
        print("likeliest", json.dumps(words[0]))
        return {"tokens": list(zip(words, top.values.tolist(), strict=True))}
    graph = attribute(tokens, model, batch_size=48, max_feature_nodes=10_000, verbose=False)
    with tempfile.TemporaryDirectory() as directory:
        create_graph_files(graph, slug="graph", output_path=directory, scan="demo")
        document = json.loads((Path(directory) / "graph.json").read_text())
    print("nodes", len(document["nodes"]))
    print("links", len(document["links"]))
    return document


runpod.serverless.start({"handler": handler})
