"""Train the whole demo anew, with examples of its features: python -m demo.train"""

import argparse
import time
from pathlib import Path

import torch
import yaml
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

from demo import feature_examples
from demo.corpus import all_facts
from demo.tokenizer import TURN_END, train_tokenizer
from demo.train_language_model import CONTEXT, LanguageModelTraining, train_language_model
from demo.train_lorsas import train_and_save_lorsas
from demo.train_transcoders import collect, layer_trainings, train_transcoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out: Path = parser.parse_args().out
    started = time.perf_counter()
    torch.set_num_threads(1)  # Sums in one order: the same weights from the same seed.
    tokenizer = train_tokenizer(all_facts(), CONTEXT)
    model = train_language_model(tokenizer, LanguageModelTraining())
    save_language_model(model, tokenizer, out / "model")
    train_and_save_transcoders(model, tokenizer, out / "transcoders")
    train_and_save_lorsas(model, tokenizer, out / "complete")
    feature_examples.write(out)
    print(f"done in {time.perf_counter() - started:.0f} s: {out}")


def save_language_model(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Write model and tokenizer as Hugging Face lays them out, weights in float32."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def train_and_save_transcoders(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Train a transcoder for each layer and write the set as circuit-tracer lays it out."""
    trainings = layer_trainings()
    directory.mkdir(parents=True, exist_ok=True)
    collected = collect(model, tokenizer, trainings[0].rows, trainings[0].seed)
    for layer, (data, training) in enumerate(zip(collected, trainings, strict=True)):
        transcoder = train_transcoder(layer, data, training)
        transcoder.to_safetensors(str(directory / f"layer_{layer}.safetensors"))
    config = {
        "model_name": "demo",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "scan": "demo",
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


if __name__ == "__main__":
    main()
