"""The known name that a misspelt one most likely stands for."""

import difflib
from collections.abc import Iterable

_LONGEST = 100  # of a word that is looked for: the time grows with its length


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like this word, whatever its case; None if none is near."""
    by_lower_case = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word[:_LONGEST].lower(), by_lower_case, n=1)
    return by_lower_case[found[0]] if found else None
