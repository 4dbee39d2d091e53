"""Where a shield's rounds go: its own history, the log, and an audit where there is one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_shield.types import AuditSink, RoundRecord

logger = logging.getLogger("flwr.fl_shield")


class Recorder:
    """Keeps every round and writes it to the audit before the next one begins.

    Parameters
    ----------
    audit : AuditSink, str or Path, optional
        A string is a database URL, a path an SQLite file, opened when the first run begins.
    """

    def __init__(self, audit: AuditSink | str | Path | None = None) -> None:
        self.run_id = ""
        self.history: list[RoundRecord] = []
        self._audit = audit
        self._sink: AuditSink | None = None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Open a run in the audit, unless one is open."""
        if self._sink is not None or self._audit is None:
            return
        if isinstance(self._audit, str | Path):
            self._audit = _opened(self._audit)
        self._sink = self._audit
        self.run_id = self._sink.start_run(settings)

    def write(self, record: RoundRecord) -> None:
        """Keep one round, log it in a line, and write it to the audit."""
        self.history.append(record)
        _log(record)
        if self._sink is not None:
            self._sink.write_round(self.run_id, record)

    def finish(self, status: str) -> None:
        """Close the audit's run, if one is open."""
        if self._sink is not None:
            sink, self._sink = self._sink, None
            sink.finish_run(self.run_id, status)


def _opened(url: str | Path) -> AuditSink:
    from fl_shield.audit import AuditStore

    return AuditStore(url)


def _log(record: RoundRecord) -> None:
    counts = Counter(v.action.value for v in record.verdicts)
    shown = ", ".join(f"{n} {action}" for action, n in sorted(counts.items()))
    logger.info("shield: %s (%.3fs)", shown, record.shield_seconds)
    for verdict in record.verdicts:
        if verdict.reasons:
            logger.debug("\t> %s: %s", verdict.client_id, "; ".join(verdict.reasons))
    for note in record.notes:
        logger.info("\t> %s", note)
