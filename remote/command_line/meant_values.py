"""What was probably meant by a value of the command line that has another form than it should."""

import re

_NUMBER = r"\d*\.?\d+(?:[eE][+-]?\d+)?"
_MOST_DIGITS = 200  # of a text that is looked at


def feature(text: str) -> str:
    """Of `2,157,4` the end of a sentence that suggests `2:157:4=0`."""
    where, equals, change = text[:_MOST_DIGITS].partition("=")
    sites = _sites(where)
    if len(sites) != 1:
        return ""
    kind = "lorsa:" if _is_lorsa(where) else ""
    if not equals:
        return f"; did you mean {kind}{sites[0]}=0, which ablates it?"
    number = re.fullmatch(rf"\s*([+-]?)({_NUMBER})\s*", change)
    if number is None:
        return ""
    amount = "0" if float(number[2]) == 0 else f"{number[1] or '+'}{number[2]}"
    return f"; did you mean {kind}{sites[0]}={amount}?"


def target_feature(text: str) -> str:
    """Of `2_lor_157_4` the end of a sentence that suggests `2:157:4:lorsa`."""
    sites = _sites(text[:_MOST_DIGITS].partition("=")[0])
    kind = ":lorsa" if _is_lorsa(text) else ""
    return f"; did you mean {sites[0]}{kind}?" if len(sites) == 1 else ""


def group(text: str) -> str:
    """Of `French=2,157,4` the end of a sentence that suggests `French=2:157:4`."""
    name, equals, places = text[:_MOST_DIGITS].rpartition("=")
    sites = _sites(places)
    if not sites:
        return ""
    return f"; did you mean {(name if equals else '') or 'NAME'}={','.join(sites)}?"


def experiment(part: str) -> str:
    """Of `French:0` the end of a sentence that suggests `French*0`."""
    part = part[:_MOST_DIGITS].strip()
    if re.fullmatch(r"\d+", part):
        return "; a decimal number takes a point, as in 0.5"
    found = re.fullmatch(rf"(?P<group>.+?)\s*[*=:x×\s]\s*(?P<number>[+-]?{_NUMBER})\s*", part)
    if found is not None:
        return f"; did you mean {found['group']}*{found['number']}?"
    name = re.split(r"[*=:]", part)[0].strip()
    return f"; did you mean {name}*0, which turns it off?" if name else ""


def layers(text: str) -> str:
    """Of `[0, 3]` the end of a sentence that suggests `0-3`."""
    numbers = re.findall(r"\d+", text[:_MOST_DIGITS])
    if len(numbers) not in {1, 2}:
        return ""
    return f"; did you mean {numbers[0]}-{numbers[-1]}?"


def _sites(text: str) -> list[str]:
    """The places in a text of another form: 2,157,4 or 2/157/4, or a node's id."""
    numbers = re.findall(r"\d+", text)
    if not numbers or len(numbers) % 3:
        return []
    return [":".join(numbers[at : at + 3]) for at in range(0, len(numbers), 3)]


def _is_lorsa(text: str) -> bool:
    return re.search(r"lor(?:sa)?(?![a-z])", text[:_MOST_DIGITS].lower()) is not None
