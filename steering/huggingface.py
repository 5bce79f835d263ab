"""Forward passes of the Hugging Face model inside circuit-tracer's nnsight model.

Features read and write where circuit-tracer's mapping for nnsight says, through plain module hooks:
a trace would cost a thread and a compilation for each pass, and can't keep a key-value cache.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from circuit_tracer.utils.tl_nnsight_mapping import get_mapping
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from steering.engine import Hooks, Passes


class HuggingFacePasses(Passes):
    """Passes with hooks on the modules of the Hugging Face model."""

    def __init__(self, model: Any) -> None:
        self.model, self.transcoders = model, _wrapped(model.transcoders)
        self._hf_model: nn.Module = _wrapped(model)
        mapping = get_mapping(model.cfg.original_architecture)
        locations = mapping.feature_hook_mapping
        self._locations = {
            "feature input": locations[self.transcoders.feature_input_hook],
            "feature output": locations[self.transcoders.feature_output_hook],
        }
        # …self_attn.source.attention_interface_0…
        self._attention = mapping.attention_location_pattern.partition(".source.")[0]
        self._trunk = mapping.pre_logit_location
        # Norms of queries and keys act on attention patterns alone.
        self._norms = [
            pattern.partition(".source.")[0]
            for pattern in mapping.layernorm_scale_location_patterns
            if ".self_attn." not in pattern
        ]

    def blocks(self) -> Sequence[nn.Module]:
        block, _, _ = self._attention.rpartition(".")
        return [self._module(block.format(layer=n)) for n in range(self.model.cfg.n_layers)]

    def new_cache(self, n_rows: int) -> "_Cache":  # noqa: ARG002 - it takes its rows as they come
        return _Cache(config=self._hf_model.config)

    def keep_rows(self, cache: "_Cache", rows: Sequence[int]) -> None:
        cache.batch_select_indices(rows)

    def logits(
        self, tokens: Tensor, cache: "_Cache", hooks: Hooks, *, freeze_attention: bool = False
    ) -> Tensor:
        return self._logits(tokens, cache, hooks, freeze_attention, freeze_norms=False)

    def _logits(
        self,
        tokens: Tensor,
        cache: "_Cache",
        hooks: Hooks,
        freeze_attention: bool,
        freeze_norms: bool,
    ) -> Tensor:
        cache.gives_first_rows_keys = freeze_attention
        with self._hooked(hooks, freeze_attention, freeze_norms):
            output = self._hf_model(
                input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def last_logits(
        self, tokens: Tensor, hooks: Hooks, *, freeze_attention: bool, freeze_norms: bool
    ) -> Tensor:
        cache = self.new_cache(len(tokens))
        return self._logits(tokens, cache, hooks, freeze_attention, freeze_norms)

    def plain_logits(self, tokens: Tensor) -> Tensor:
        # Logits of one position come from another kernel than those of all, and round otherwise.
        return self._hf_model(input_ids=tokens, use_cache=False).logits[0, -1]

    def read(self, tokens: Tensor, hooks: Hooks) -> None:
        with self._hooked(hooks):
            self._module(self._trunk)(input_ids=tokens, use_cache=False)

    def _module(self, path: str) -> Any:
        """The module at a path of the mapping, as `model.layers[3].mlp`."""
        return self._hf_model.get_submodule(path.replace("[", ".").replace("]", ""))

    @contextmanager
    def _hooked(
        self, hooks: Hooks, freeze_attention: bool = False, freeze_norms: bool = False
    ) -> Iterator[None]:
        with ExitStack() as handles:
            # Before the others, which see what a frozen norm gives.
            for norm in self._all_norms() if freeze_norms else ():
                handles.enter_context(norm.register_forward_hook(_at_first_row_s_scale))
            for (layer, side), function in hooks.items():
                pattern, end = self._locations[side]
                handle = self._register(layer, function, pattern, end, freeze_norms)
                handles.enter_context(handle)
            for layer in range(self.model.cfg.n_layers if freeze_attention else 0):
                queries = self._module(self._attention.format(layer=layer)).q_proj
                handles.enter_context(
                    queries.register_forward_hook(lambda _module, _args, q: q[:1].expand_as(q))
                )
            yield

    def _all_norms(self) -> Iterator[nn.Module]:
        for pattern in self._norms:
            layers = range(self.model.cfg.n_layers if "{layer}" in pattern else 1)
            yield from (self._module(pattern.format(layer=layer)) for layer in layers)

    def _register(
        self,
        layer: int,
        function: Callable[[Tensor], Any],
        pattern: str,
        side: str,
        freeze_norms: bool,
    ) -> RemovableHandle:
        """Hook a location of the mapping: a module's input or output, or a call in its forward."""
        path, _, call = pattern.format(layer=layer).partition(".source.")
        module = self._module(path)
        if call:
            called = getattr(module, call.removeprefix("self_").removesuffix("_0"))
            if not isinstance(called, nn.Module):
                # Gemma's RMSNorm before its weight, which it takes of the input in float32.
                change = _scale_change if freeze_norms else lambda *_: 1.0
                return _on_input(module, lambda x: function(called(x.float()) * change(module, x)))
            module = called
        if side == "input":
            return _on_input(module, function)
        return module.register_forward_hook(lambda _module, _args, output: function(output))


def _at_first_row_s_scale(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """What an RMS norm gives where it divides every row by the first one's scale."""
    return (output * _scale_change(norm, args[0])).to(output.dtype)


def _scale_change(norm: Any, x: Tensor) -> Tensor:
    """Each row's scale in an RMS norm, by the first row's: (n_rows, n_positions, 1) float32."""
    eps = getattr(norm, "variance_epsilon", None)  # Gemma's has another name
    squares = x.float().square().mean(-1, keepdim=True) + (norm.eps if eps is None else eps)
    return (squares / squares[:1]).sqrt()


def _wrapped(envoy: Any) -> Any:
    """The module that nnsight wraps, for which it has no public name."""
    return envoy._module


def _on_input(module: nn.Module, function: Callable[[Tensor], Any]) -> RemovableHandle:
    def call(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        function(args[0])

    return module.register_forward_pre_hook(call)


class _Cache(DynamicCache):
    """A key-value cache that can give attention the first row's keys in place of each row's own.

    With the first row's queries too, every row has the first one's attention patterns. The cache
    keeps each row's own keys all the same, for the passes that follow.
    """

    gives_first_rows_keys = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, layer_idx, cache_kwargs)
        return (keys[:1].expand_as(keys) if self.gives_first_rows_keys else keys), values
