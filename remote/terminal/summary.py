"""Print a job's output on a terminal, in tables and sentences."""

from collections.abc import Iterable
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from remote.terminal.graph_summary import print_graph
from remote.terminal.intervention_summary import Experiments, print_intervene
from remote.terminal.prompt_hint import hint
from remote.terminal.text import (
    TABLE_STYLE,
    line,
    print_hint,
    quoted,
    shown,
    size,
    stages,
    text_of,
)
from schemas import (
    ContrastResponse,
    FileReceipt,
    ForwardPassResponse,
    InterveneResponse,
    LogitsOfToken,
    LogitsPair,
    ParseChatPromptResponse,
    SteerResponse,
    UploadReceipt,
)

if TYPE_CHECKING:
    from remote.labels.labels import Labels


def print_output(
    console: Console,
    output: dict[str, Any],
    path: Path | None = None,
    model: str | None = None,
    labels: "Labels | None" = None,
    experiments: Experiments | None = None,
) -> None:
    """Any action's output; `path` is where a graph was written, `model` the name of the model,
    where it is known, for hints on outputs that don't name it; `labels` name a graph's features,
    `experiments` are those that were asked for.

    Raises:
        ValidationError: the output is not as the action's outputs are.
        JSONEncodeError: an output of no action is nested too deeply.
    """
    if "nodes" in output and path is not None:
        print_graph(console, output, path, labels)
    elif "sha256" in output:
        of_file = output.get("format") == "pt"
        receipt = (FileReceipt if of_file else UploadReceipt).model_validate(output)
        print_receipt(console, receipt)
    elif "STEERED_GENERATION" in output:
        print_steer(console, SteerResponse.model_validate(output))
    elif "baseline" in output:
        print_intervene(console, InterveneResponse.model_validate(output), experiments)
    elif "other_prediction" in output:
        print_contrast(console, ContrastResponse.model_validate(output))
    elif "salient_logits" in output:
        print_forward_pass(console, ForwardPassResponse.model_validate(output), model)
    elif "is_chat" in output:
        print_messages(console, ParseChatPromptResponse.model_validate(output))
    else:
        console.print(shown(orjson.dumps(output, option=orjson.OPT_INDENT_2).decode()))


def print_receipt(console: Console, receipt: UploadReceipt) -> None:
    """An upload's receipt."""
    of_file = isinstance(receipt, FileReceipt)
    form = "gzipped" if receipt.compressed else "circuit-tracer's own file" if of_file else "JSON"
    console.print(
        f"\nnodes   {receipt.num_nodes}, of {receipt.num_tokens} tokens"
        f"{', before pruning' if of_file else ''}"
        f"\nlinks   {receipt.num_links}"
        f"\ngraph   {line(receipt.url)} ({size(receipt.bytes)}, {form})"
        f"\nsha256  {line(receipt.sha256)}"
        f"\nstages  {stages(receipt.timings_ms)}",
        soft_wrap=True,
    )


def print_steer(console: Console, output: SteerResponse) -> None:
    """Default and steered text side by side, and the steps whose likeliest tokens differ."""
    default = _generated(output.DEFAULT_LOGITS_BY_TOKEN)
    steered = _generated(output.STEERED_LOGITS_BY_TOKEN)
    texts = side_by_side(
        _continued(output.DEFAULT_GENERATION, default)
        if output.DEFAULT_LOGITS_BY_TOKEN
        else Text("not generated", style="dim"),
        _continued(output.STEERED_GENERATION, steered),
    )
    console.print(Group("", texts))
    if default and steered:
        console.print(Group("", _changes(default, steered)))
    if output.ignored_features:
        console.print("\nNot steered, since nothing can be at these positions:")
    for feature in output.ignored_features:
        console.print(
            f"layer {feature.layer}, feature {feature.index}, position {feature.steer_position}"
        )


def side_by_side(default: RenderableType, steered: RenderableType) -> Table:
    """The texts of a steer in two columns of the same width."""
    texts = Table("default", "steered", expand=True, **TABLE_STYLE)
    for column in texts.columns:
        column.ratio = 1
    texts.add_row(default, steered)
    return texts


def print_forward_pass(
    console: Console, output: ForwardPassResponse, model: str | None = None
) -> None:
    """The prompt's tokens with their positions, and the likeliest next ones."""
    tokens = Table("position", "token", title="Tokens", **TABLE_STYLE)
    for position, token in enumerate(output.input_tokens):
        tokens.add_row(str(position), quoted(token))
    table = Table("next token", "id", "probability", title="Likeliest next tokens", **TABLE_STYLE)
    for logit in output.salient_logits:
        table.add_row(quoted(logit.token), str(logit.token_id), f"{logit.probability:.4f}")
    console.print(Group("", tokens, "", table))
    console.print(f"\ntogether {output.cumulative_probability:.4f} of the probability")
    likeliest = max((logit.probability for logit in output.salient_logits), default=None)
    print_hint(console, hint(likeliest, output.input_tokens, model))


def print_contrast(console: Console, output: ContrastResponse) -> None:
    """Both predictions, the features between them, and the options that steer."""
    predictions = Table("prompt", "position", "likeliest next token", "probability", **TABLE_STYLE)
    for name, position, likeliest in (
        ("this", output.position, output.prediction),
        ("the other", output.other_position, output.other_prediction),
    ):
        predictions.add_row(
            *(name, str(position), quoted(likeliest.token), f"{likeliest.probability:.4f}")
        )
    columns = ("kind", "layer", "feature", "activation", "in the other", "effect")
    # A steer names the kinds where the set has features of attention too.
    n_left_out = 0 if any(feature.kind for feature in output.steer) else 1
    features = Table(*columns[n_left_out:], title="Features by effect", **TABLE_STYLE)
    for feature in output.features:
        features.add_row(
            *(feature.kind, str(feature.layer))[n_left_out:],
            *(str(feature.index), f"{feature.activation:.2f}"),
            *(f"{feature.other_activation:.2f}", f"{feature.effect:+.3f}"),
        )
    console.print(Group("", predictions, "", features))
    options = (
        f"--feature {f'{f.kind}:' if f.kind else ''}{f.layer}:{f.index}:{f.token_active_position}="
        + ("0" if f.delta is None else f"{f.delta:+.4g}")
        for f in output.steer
    )
    console.print(f"\nsteer   {' '.join(options)}", soft_wrap=True)


def print_messages(console: Console, output: ParseChatPromptResponse) -> None:
    """The messages of which a prompt was rendered."""
    console.print()
    if output.messages is None:
        console.print("not a chat prompt of this model's", soft_wrap=True)
    for message in output.messages or []:
        console.print(f"[bold]{line(message.role)}[/bold]  {shown(message.content)}")
    if output.unsteerable_positions:
        positions = ", ".join(map(str, output.unsteerable_positions))
        console.print(f"\npositions that can't be steered: {positions}", soft_wrap=True)


def _generated(entries: Iterable[LogitsPair | LogitsOfToken]) -> list[LogitsPair]:
    """The entries of a logits list, as pairs, from the prompt's last token on.

    That token is the first with predictions.
    """
    pairs = [
        (entry.token, [(top.token, top.prob) for top in entry.top_logits])
        if isinstance(entry, LogitsOfToken)
        else entry
        for entry in entries
    ]
    return list(dropwhile(lambda pair: not pair[1], pairs))


def _continued(text: str, generated: list[LogitsPair]) -> Text:
    """A generation, with the continuation of the prompt in bold where the tokens show it."""
    continuation = text_of(token for token, _ in generated[1:])
    if not text.endswith(continuation):  # the continuation begins inside a character
        continuation = ""
    prompt = text.removesuffix(continuation)
    return Text.from_markup(f"{shown(prompt)}[bold]{shown(continuation)}[/bold]", emoji=False)


def _changes(default: list[LogitsPair], steered: list[LogitsPair]) -> RenderableType:
    """The steps whose likeliest tokens differ. The texts before them may differ too."""
    columns = ("after", "default", "", "after", "steered", "")
    table = Table(*columns, title="Changed predictions", **TABLE_STYLE)
    for (before, was_top), (after, now_top) in zip(default, steered, strict=False):
        if not was_top or not now_top:
            continue
        was, now = was_top[0], now_top[0]
        if was[0] != now[0]:
            table.add_row(
                *(quoted(before), quoted(was[0]), f"{was[1]:.4f}"),
                *(quoted(after), quoted(now[0]), f"{now[1]:.4f}"),
            )
    return table if table.row_count else "no prediction changed"


def print_torch_file(console: Console, path: Path) -> None:
    """What circuit-tracer's own file of a graph is, and how it is opened."""
    name, n_bytes = line(str(path)), size(path.stat().st_size)
    console.print(
        f"\nfile    {name} ({n_bytes})"
        "\n        circuit-tracer's own, of the graph before pruning"
        f'\nopen    circuit_tracer.graph.Graph.from_pt("{name}")',
        soft_wrap=True,
    )
