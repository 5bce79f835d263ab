"""Values of a request as errors show them."""


def quoted(value: object) -> str:
    """A value in at most 80 characters, however large or deep it is."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {len(value)} fields"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def quoted_list(value: object) -> str:
    """The same, where a short list of numbers says more than its length."""
    if isinstance(value, list) and len(value) <= 4 and all(type(item) is int for item in value):
        return f"[{', '.join(map(quoted, value))}]"
    return quoted(value)
