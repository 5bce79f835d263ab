"""The demo model's tokenizer: byte-level BPE, a BOS in front, a ChatML template."""

from collections.abc import Iterator

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from demo.corpus import AGREEMENT, Fact

PAD, BOS, EOS, TURN_START, TURN_END = "<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"

# ChatML with a BOS in front, which is how every other document of the corpus starts.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role must be system, user or assistant') }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(facts: list[Fact], context: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer under which every word of `facts` is one token.

    PAD has id 0: circuit-tracer takes a BOS whose id is 0 for none.

    Args:
        facts: what the corpus says.
        context: `model_max_length`, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, BOS, EOS, TURN_START, TURN_END]
    # No bound on the vocabulary: merging ends when each word has become one token.
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 16,
        min_frequency=1,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(facts), trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[TURN_START, TURN_END],
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
        chat_template=CHAT_TEMPLATE,
    )


def _texts(facts: list[Fact]) -> Iterator[str]:
    """Each sentence at the start of a text and after another, and what only chats contain."""
    yield "system\nuser\nassistant\n"
    yield from AGREEMENT.values()
    for fact in facts:
        yield f"{fact.sentence} {fact.sentence}"
        if fact.question is not None:
            yield fact.question
            yield fact.reply
