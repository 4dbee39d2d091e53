"""The audit: every decision of the shield, on record and tamper-evident.

``AuditStore`` is where :class:`fl_shield.strategies.ShieldedStrategy` writes (its ``audit``
option takes a store or a database URL); the functions beside it read a store.

======================  =====================================================================
record                  :class:`AuditStore` (an :class:`fl_shield.types.AuditSink`)
read                    :meth:`AuditStore.runs`, ``run``, ``rounds``, ``verdicts``
verify                  :meth:`AuditStore.verify`, :meth:`AuditStore.head`, :class:`Verification`
show                    :func:`write_report` (one HTML file), :func:`score_heat_map`
hand on                 :func:`export` (CSV or JSON, streamed)
======================  =====================================================================

Rows are chained by SHA-256, or HMAC-SHA256 under a key (:mod:`fl_shield.audit.chain`): an edit, a
deletion or a reorder is found from the database alone, a cut tail with the head that
``results.json`` keeps. What the audit cannot see is whether the process that wrote it was honest.

Examples
--------
>>> store = AuditStore("sqlite://")  # in memory; a file: sqlite:///runs/audit.db
>>> run_id = store.start_run({"strategy": "FedAvg", "mode": "monitor"})
>>> store.finish_run(run_id)
>>> store.verify(store.head()).ok
True
"""

from fl_shield.audit.chain import Fault, Verification
from fl_shield.audit.export import FORMATS, export
from fl_shield.audit.figures import score_heat_map
from fl_shield.audit.records import AuditedRound, AuditedRun, AuditedVerdict
from fl_shield.audit.report import write_report
from fl_shield.audit.store import AuditStore

__all__ = [
    "FORMATS",
    "AuditStore",
    "AuditedRound",
    "AuditedRun",
    "AuditedVerdict",
    "Fault",
    "Verification",
    "export",
    "score_heat_map",
    "write_report",
]
