"""Tiny real tokenizers, one a family: its kind, its special tokens, its chat format.

Each builds in milliseconds, takes any text without an unknown token, and saves and loads like a
downloaded one (`save_pretrained`). Special tokens have the standing they have in the real files:
Qwen and Gemma list their turn markers as additional special tokens, Llama 3 only marks them
special, Qwen has no BOS. Gemma 3's required prefix has its real ids (2, 105, 2364, 107).
"""

from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

_CORPUS = [
    "The capital of France is Paris. The capital of Spain is Madrid. The capital of Italy is Rome.",
    "Fact: Michael Jordan plays the sport of basketball. Fact: Babe Ruth plays baseball.",
    "The opposite of small is big. One two three four five six seven eight nine ten.",
    "user assistant model system What is the answer? Hello, how are you? Monday Tuesday Wednesday",
    "def main(): return [0, 1, 2]\n\n    if x == y:\n        print(x)\n",
]

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Qwen 2.5: ChatML that opens with a system turn of its own when the caller gives none.
QWEN25_TEMPLATE = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
) + CHATML_TEMPLATE

# Qwen 3: the assistant's thinking is shown after the last question and dropped before it; a
# trailing assistant turn without any gets an empty think block.
QWEN3_TEMPLATE = (
    "{% set seen = namespace(query=messages|length - 1) %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{% set seen.query = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for message in messages %}"
    "{% set text = message.content %}{% set thought = '' %}"
    "{% if message.role == 'assistant' and '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}"
    "{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.index0 > seen.query and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') }}"
    "{% else %}{{ text }}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}"
    "{% endif %}"
)

_GEMMA_TURNS = (
    "{% for message in turns %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% set label = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + label + '\n' + (first if loop.first else '') }}"
    "{{ message.content | trim }}{{ '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

GEMMA2_TEMPLATE = (
    "{{ bos_token }}{% set first = '' %}{% set turns = messages %}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
) + _GEMMA_TURNS

# Gemma 3 has no system role either: the system text goes before the first user text.
GEMMA3_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
) + _GEMMA_TURNS

# Llama 3.2: a system block with today's date is always there.
LLAMA3_TEMPLATE = (
    "{{ bos_token }}"
    "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}"
    "{% else %}{% set today = '26 Jul 2024' %}{% endif %}"
    "{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content | trim %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}"
    "{{ 'Today Date: ' + today + '\n\n' + system + '<|eot_id|>' }}"
    "{% for message in turns %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{ message.content | trim }}{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)

# Llama 2: no role headers, the system text in a frame inside the first user turn.
LLAMA2_TEMPLATE = (
    "{% if messages[0].role == 'system' %}"
    "{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (first if loop.first else '') + message.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)


def byte_level(special_tokens: list[str], plain_tokens: tuple[str, ...] = ()) -> Tokenizer:
    """A byte-level BPE as GPT-2, Qwen and Llama 3 have, trained on five sentences.

    The special tokens have the last ids, as theirs have.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens(special_tokens)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain_tokens])
    return tokenizer


def byte_fallback(turn_markers: dict[str, int], newline: int, words: dict[str, int]) -> Tokenizer:
    """As Gemma's: byte fallback, line breaks in runs. Ids not named hold `<unusedN>`."""
    names = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, **turn_markers}
    names |= {"\n" * n: newline + n - 1 for n in (1, 2, 3)}
    names |= {f"<0x{byte:02X}>": 200 + byte for byte in range(256)}
    names |= {chr(code): 1000 + code for code in range(0x21, 0x7F)} | {"▁": 499}
    merges = [("\n", "\n"), ("\n\n", "\n")]
    pieces = 1200
    for word, number in words.items():
        for end in range(2, len(word) + 1):
            merge = (word[: end - 1], word[end - 1])
            if merge not in merges:
                merges.append(merge)
                names[word[:end]] = number if end == len(word) else (pieces := pieces + 1)
    taken = set(names.values())
    names |= {f"<unused{n}>": n for n in range(max(taken)) if n not in taken}
    tokenizer = Tokenizer(
        models.BPE(names, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", *turn_markers])
    return tokenizer


def _adds(bos: str, tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def gpt2() -> PreTrainedTokenizerFast:
    """No chat template; one special token, which is BOS, EOS and unknown."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level([end]), bos_token=end, eos_token=end, unk_token=end
    )


def bos_zero() -> PreTrainedTokenizerFast:
    """As GPT-2's, with the special token first: a BOS id of 0, as Pythia has."""
    end = "<|endoftext|>"
    words = byte_level([])
    vocabulary = {end: 0, **{word: n + 1 for word, n in words.get_vocab().items()}}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = words.pre_tokenizer, words.decoder
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end
    )


def _qwen(chat_template: str) -> PreTrainedTokenizerFast:
    markers = ["<|im_start|>", "<|im_end|>"]
    backend = byte_level(["<|endoftext|>", *markers], ("<think>", "</think>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=markers,
        chat_template=chat_template,
    )


def chatml() -> PreTrainedTokenizerFast:
    return _qwen(CHATML_TEMPLATE)


def qwen25() -> PreTrainedTokenizerFast:
    return _qwen(QWEN25_TEMPLATE)


def qwen3() -> PreTrainedTokenizerFast:
    return _qwen(QWEN3_TEMPLATE)


def _gemma(backend: Tokenizer, chat_template: str | None) -> PreTrainedTokenizerFast:
    _adds("<bos>", backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        chat_template=chat_template,
    )


def gemma2() -> PreTrainedTokenizerFast:
    """The instruction-tuned one; the base model's has no chat template."""
    markers = {"<start_of_turn>": 106, "<end_of_turn>": 107}
    words = {"user": 1645, "model": 2516, "▁the": 573}
    return _gemma(byte_fallback(markers, 108, words), GEMMA2_TEMPLATE)


def gemma2_base() -> PreTrainedTokenizerFast:
    tokenizer = gemma2()
    tokenizer.chat_template = None
    return tokenizer


def gemma3() -> PreTrainedTokenizerFast:
    markers = {"<start_of_turn>": 105, "<end_of_turn>": 106}
    words = {"user": 2364, "model": 4368, "▁the": 506}
    return _gemma(byte_fallback(markers, 107, words), GEMMA3_TEMPLATE)


def gemma3_base() -> PreTrainedTokenizerFast:
    tokenizer = gemma3()
    tokenizer.chat_template = None
    return tokenizer


def llama3() -> PreTrainedTokenizerFast:
    """Its `decode` takes the space before a full stop away, as the real one's does."""
    markers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = byte_level(["<|begin_of_text|>", "<|end_of_text|>", *markers])
    _adds("<|begin_of_text|>", backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        clean_up_tokenization_spaces=True,
        chat_template=LLAMA3_TEMPLATE,
    )


def llama2() -> PreTrainedTokenizerFast:
    backend = byte_level(["<unk>", "<s>", "</s>"])
    _adds("<s>", backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=LLAMA2_TEMPLATE,
    )


CHAT_FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": chatml,
    "qwen25": qwen25,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "llama3": llama3,
    "llama2": llama2,
}
BASE_FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": gpt2,
    "bos_zero": bos_zero,
    "gemma2_base": gemma2_base,
    "gemma3_base": gemma3_base,
}
