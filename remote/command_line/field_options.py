"""Options of a command that are the fields of an action's request."""

from argparse import ArgumentParser
from collections.abc import Collection
from typing import Any, Literal, get_args, get_origin

import schemas

# Fields of a request without an option of their own name: PROMPT, OTHER_PROMPT and --timeout
# set them, and the client reads steers in one form.
_NOT_OPTIONS = {"prompt", "other_prompt", "deadline", "logits_format"}
# Fields of a graph's request that no row of a batch has: --timeout says by when, and what is kept
# are documents. Of the rest, these are a row's own.
NOT_IN_BATCH = {"deadline", "format"}
OF_A_ROW = {"signed_url", "slug_identifier"}


def is_action(command: str) -> bool:
    return schemas.canonical_action(command) in schemas.REQUESTS


def add_fields(
    parser: ArgumentParser, command: str, *, besides: Collection[str] = frozenset()
) -> None:
    """An option for each field of the request that is a text, a number, a flag or a choice."""
    fields = schemas.REQUESTS[schemas.canonical_action(command)].model_fields
    for name, field in fields.items():
        kind, choices = simple_type(field.annotation), choices_of(field.annotation)
        if name in _NOT_OPTIONS or name in besides or not (kind or choices):
            continue
        flag = "--" + name.replace("_", "-")
        words = (field.description or name.replace("_", " ")).replace("%", "%%")
        if kind is bool and field.default is True:
            flag = flag.replace("--", "--no-", 1)
            words = f"don't {words}"
            parser.add_argument(flag, action="store_false", default=None, dest=name, help=words)
            continue
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=words)
            continue
        if field.default is not None:
            words += f" ({field.default})"
        if kind is None:
            parser.add_argument(flag, choices=choices, help=words)
            continue
        parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=words)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The texts that a field takes, where it takes no others."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def simple_type(annotation: Any) -> type | None:
    """str, int, float or bool, for an annotation that is one of these, optional or bounded."""
    if annotation in (str, int, float, bool):
        return annotation
    is_list = getattr(annotation, "__origin__", None) in (list, dict)
    inner = get_args(annotation)
    return simple_type(inner[0]) if inner and not is_list else None
