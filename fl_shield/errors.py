"""Every error that fl_shield raises on purpose: value, rule and remedy in each message.

The tree::

    ShieldError
    ├── NotFittedError      a detector was asked to score before it was fitted
    ├── InvalidReplyError   a client's reply breaks the contract of the global model
    ├── GuardError          a model, or what it says of inputs, cannot be guarded
    ├── DatasetError        a data set is missing, unreadable or too small
    ├── ScenarioError       an experiment was described with impossible settings
    ├── AggregationError    a rule lacks what it needs to aggregate a round
    ├── EngineError         a simulation engine could not finish a run
    └── AuditError          an audit database is missing, unreadable or does not verify
"""


class ShieldError(Exception):
    """Base of all errors that fl_shield raises on purpose."""


class NotFittedError(ShieldError):
    """A detector was asked to score before it was fitted."""


class InvalidReplyError(ShieldError, ValueError):
    """A client's reply breaks the contract of the global model."""


class GuardError(ShieldError, ValueError):
    """A model, or what it says of inputs, cannot be guarded."""


class DatasetError(ShieldError, ValueError):
    """A data set is missing, unreadable or too small."""


class ScenarioError(ShieldError, ValueError):
    """An experiment was described with impossible settings."""


class AggregationError(ShieldError, ValueError):
    """A rule lacks what it needs to aggregate a round: clients, clean examples, a model."""


class EngineError(ShieldError, RuntimeError):
    """A simulation engine could not finish a run."""


class AuditError(ShieldError, RuntimeError):
    """An audit database is missing, unreadable or does not verify."""
