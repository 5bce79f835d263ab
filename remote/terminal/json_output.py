"""What `--json` prints."""

import re
import sys
from typing import Any

import orjson

# What a terminal may obey or hide, among what JSON leaves as it is. `\u009b` is the same in JSON.
_UNSAFE = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def print_json(output: Any) -> None:
    text = orjson.dumps(output, option=orjson.OPT_INDENT_2).decode()
    text = _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.flush()  # here a reader that has gone is noticed, and not as the process ends
