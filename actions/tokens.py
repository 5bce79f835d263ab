"""Token strings, as documents show them, to the model's ids and back."""

from collections.abc import Iterable, Sequence

from errors import InvalidInput
from loading.loaded_model import LoadedModel
from prompting.prompts import MAX_CHARACTERS_PER_TOKEN
from prompting.token_text import joined
from schemas import SalientLogit


def likely(
    token_ids: Iterable[int], probabilities: Iterable[float], loaded: LoadedModel
) -> list[SalientLogit]:
    """Tokens with their strings and probabilities, as responses have them."""
    return [
        SalientLogit(token=loaded.token_text.single(token_id), token_id=token_id, probability=p)
        for token_id, p in zip(token_ids, probabilities, strict=True)
    ]


def token_ids(field: str, strings: Sequence[str], loaded: LoadedModel) -> list[int]:
    """The id of each token string of a field.

    Raises:
        InvalidInput: a string is no token, or one token is named twice.
    """
    ids: dict[int, None] = {}
    for i, string in enumerate(strings):
        found = token_id(f"{field}[{i}]", string, loaded)
        if found in ids:
            raise InvalidInput(f"{field}[{i}] names {string!r} twice; name it once")
        ids[found] = None
    return list(ids)


def token_id(name: str, string: str, loaded: LoadedModel) -> int:
    """The id of a token string.

    Raises:
        InvalidInput: it is no token; `name` is the field's.
    """
    n_characters = len(joined([string]))
    if n_characters > MAX_CHARACTERS_PER_TOKEN:
        raise InvalidInput(
            f"{name} has {n_characters} characters, a token has at most {MAX_CHARACTERS_PER_TOKEN}"
        )
    found = loaded.token_text.id_of(string)
    if found is None:
        raise InvalidInput(_no_token(name, string, loaded))
    return found


def _no_token(field: str, target: str, loaded: LoadedModel) -> str:
    """Why a target is no token, and what the model reads instead."""
    read = loaded.token_text.read_as(target)
    if len(read) == 1:
        return f"{field} is {target[:60]!r}, for which the model has no token of its own"
    listed = ", ".join(repr(token) for token in read[:8])
    more = ", ..." if len(read) > 8 else ""
    return (
        f"{field} is {target[:60]!r}, which the model reads as {len(read)} tokens "
        f"({listed}{more}); each target must be one (mind the leading space)"
    )
