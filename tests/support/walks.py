"""The files that a call leads a reader through, in the order in which its functions first run."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.support.programs import ROOT


def stays(call: Callable[[], object], rooms: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Each stay in a file of some rooms, with the functions that other files call there.

    A function counts where it runs for the first time. Functions of one file in a row are one stay.

    Args:
        rooms: how the files' paths in the repository begin.
    """
    seen: set[Any] = set()
    walked: list[tuple[str, list[str]]] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        code, file = frame.f_code, _file(frame)
        if event != "call" or not file.startswith(rooms) or code in seen:
            return
        seen.add(code)
        caller = frame.f_back
        while caller is not None and not _file(caller):  # through libraries
            caller = caller.f_back
        is_import = "<module>" in (code.co_name, caller and caller.f_code.co_name)
        if is_import or (caller is not None and _file(caller) == file):
            return
        if not walked or walked[-1][0] != file:
            walked.append((file, []))
        walked[-1][1].append(code.co_qualname)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return walked


def _file(frame: FrameType) -> str:
    """The file's path in the repository; "" for a library's."""
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(ROOT) or "site-packages" in path.parts:
        return ""
    return path.relative_to(ROOT).as_posix()
