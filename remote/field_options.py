"""Options of a command that are the fields of an action's request."""

from argparse import ArgumentParser
from collections.abc import Collection
from typing import Any, get_args

import schemas

# Fields of a request without an option of their own name: PROMPT, OTHER_PROMPT and --timeout
# set them.
_NOT_OPTIONS = {"prompt", "other_prompt", "deadline"}
# Fields of a graph's request that no row of a batch has: --timeout says by when, and what is kept
# are documents. Of the rest, these are a row's own.
NOT_IN_BATCH = {"deadline", "format"}
OF_A_ROW = {"signed_url", "slug_identifier"}


def is_action(command: str) -> bool:
    return schemas.canonical_action(command) in schemas.REQUESTS


def add_fields(
    parser: ArgumentParser, command: str, *, besides: Collection[str] = frozenset()
) -> None:
    """An option for each field of the action's request that is a string, a number or a flag."""
    fields = schemas.REQUESTS[schemas.canonical_action(command)].model_fields
    for name, field in fields.items():
        kind = simple_type(field.annotation)
        if kind is None or name in _NOT_OPTIONS or name in besides:
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
        parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=words)


def simple_type(annotation: Any) -> type | None:
    """str, int, float or bool, for an annotation that is one of these, optional or bounded."""
    if annotation in (str, int, float, bool):
        return annotation
    is_list = getattr(annotation, "__origin__", None) in (list, dict)
    inner = get_args(annotation)
    return simple_type(inner[0]) if inner and not is_list else None
