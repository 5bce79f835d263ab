"""Descriptions of features that were fetched before, in a file on this machine.

What is wrong with the file costs labels some time and nothing else: they are fetched again.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from viewer.descriptions import Description, FeatureId

_SECONDS_A_DAY = 86_400
KEPT_S = 30 * _SECONDS_A_DAY
# People explain features day by day.
KEPT_WITHOUT_EXPLANATION_S = _SECONDS_A_DAY
MOST_BYTES = 100_000_000
_WAIT_S = 5.0  # for another process that writes
_SCHEMA = """
CREATE TABLE IF NOT EXISTS descriptions (
    server TEXT, model TEXT, source TEXT, feature INTEGER,
    fetched REAL NOT NULL, content TEXT,
    PRIMARY KEY (server, model, source, feature)
)
"""
_GET = """
SELECT fetched, content FROM descriptions
WHERE server = ? AND model = ? AND source = ? AND feature = ?
"""
_SIZE = "SELECT COALESCE(SUM(LENGTH(content)) + COUNT(*) * 100, 0) FROM descriptions"
_DROP_A_TENTH = """
DELETE FROM descriptions WHERE rowid IN (
    SELECT rowid FROM descriptions ORDER BY fetched
    LIMIT (SELECT COUNT(*) / 10 + 1 FROM descriptions)
)
"""


class LabelCache:
    """Descriptions by server and feature. The oldest go when there are more than `most_bytes`.

    A feature with an explanation is kept for a month, one without, or that there is not, for a
    day.
    """

    def __init__(
        self,
        path: Path,
        *,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._most_bytes = most_bytes
        self._clock = clock

    def get(
        self, server: str, features: Sequence[FeatureId]
    ) -> dict[FeatureId, Description | None]:
        """Those of the descriptions that are here and not too old; None: there is none."""
        found: dict[FeatureId, Description | None] = {}
        with contextlib.suppress(sqlite3.Error, OSError), self._opened() as database:
            for feature in features:
                row = database.execute(_GET, _key(server, feature)).fetchone()
                if row is None:
                    continue
                fetched, content = row
                with contextlib.suppress(ValidationError):
                    description = content and Description.model_validate_json(content)
                    if self._is_fresh(fetched, description):
                        found[feature] = description
        return found

    def put(self, server: str, described: Mapping[FeatureId, Description | None]) -> None:
        """Keep these, if the file can be written."""
        now = self._clock()
        rows = [
            (
                *_key(server, feature),
                now,
                None if description is None else description.model_dump_json(exclude_defaults=True),
            )
            for feature, description in described.items()
        ]
        with contextlib.suppress(sqlite3.Error, OSError), self._opened() as database:
            database.executemany("REPLACE INTO descriptions VALUES (?, ?, ?, ?, ?, ?)", rows)
            while database.execute(_SIZE).fetchone()[0] > self._most_bytes:
                database.execute(_DROP_A_TENTH)

    def _is_fresh(self, fetched: float, description: Description | None) -> bool:
        is_explained = description is not None and description.label
        kept_s = KEPT_S if is_explained else KEPT_WITHOUT_EXPLANATION_S
        # A time in the future is of a clock that was wrong.
        return 0 <= self._clock() - fetched < kept_s

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            database = self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # it is locked, or can't be opened
                raise
            self.path.unlink(missing_ok=True)  # what is in it is no database
            database = self._connect()
        with contextlib.closing(database), database:
            yield database

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=_WAIT_S)
        try:
            database.execute("PRAGMA auto_vacuum = FULL")  # a file that shrinks with its content
            database.execute(_SCHEMA)
        except sqlite3.Error:
            database.close()
            raise
        return database


def _key(server: str, feature: FeatureId) -> tuple[str, str, str, int]:
    return server, feature.model, feature.source, feature.index
