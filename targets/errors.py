"""Every error this project raises on purpose, in one small tree.

    CompressError
    ├── RequestError               what was asked cannot be done as asked (exit status 2)
    │   ├── TaskError              the task file, the model or the data it brings
    │   ├── ModelError             an .onnx file that cannot be read or run
    │   ├── ConstraintError        a constraint or objective that does not parse or fit
    │   ├── SpaceError             a search space or config that makes no sense
    │   ├── TargetError            a target that does not exist or is set up wrongly
    │   │   └── TargetUnavailable  its runtime is not installed; names the install command
    │   ├── RunError               a run folder that is not one, is another task's, or cannot be written
    │   └── ShadowedError          somebody's own targets.py, compress.py or recipes.py hides ours
    ├── StageError                 one stage of one trial failed; the search goes on
    │   ├── PruneError             the pruned network is not what it should be
    │   ├── TrainingError          NaN, divergence, or the user's own loop raised
    │   ├── ExportError            the exporter failed
    │   │   └── ParityError        the ONNX file does not compute what the network computes
    │   ├── QuantizeError          the quantizer failed
    │   └── MeasurementError       the runtime refused, crashed, hung or ate the memory
    │       └── TransientError     likely to work when tried again (out of memory, no space)
    │           └── Disconnected   the device is gone, or does not answer
    └── NoFeasibleCandidate        nothing found meets the constraints

A message names the thing, its value, the limit and the remedy, on one line.
The tree lives here because `targets` is the lowest package; `compress` gives the same names.
"""

from __future__ import annotations


class CompressError(Exception):
    """The root: catch this to catch everything that is raised on purpose."""


class RequestError(CompressError):
    """What was asked cannot be done as asked."""


class TaskError(RequestError):
    """The task file, the model or the data is not usable."""


class ModelError(RequestError):
    """An ``.onnx`` file cannot be read or run."""


class ConstraintError(RequestError):
    """A constraint or an objective does not parse, or does not fit the target."""


class SpaceError(RequestError):
    """A search space or a config is out of range."""


class TargetError(RequestError):
    """A target does not exist or its settings are wrong."""


class TargetUnavailable(TargetError):
    """A target's runtime is not installed; the message names the command that installs it."""


class RunError(RequestError):
    """A run's folder is not one, belongs to another task, is in use, or cannot be written."""


class ShadowedError(RequestError):
    """A file of the user's hides one of this project's packages."""


class StageError(CompressError):
    """One stage of one trial failed. The search records the cause and goes on."""


class PruneError(StageError):
    """A network could not be pruned as planned."""


class TrainingError(StageError):
    """Fine-tuning produced NaN, diverged, or the user's own loop raised."""


class ExportError(StageError):
    """A network could not be exported to ONNX."""


class ParityError(ExportError):
    """An ONNX file does not compute what the network it came from computes."""


class QuantizeError(StageError):
    """A model could not be quantized."""


class MeasurementError(StageError):
    """The runtime refused the model, crashed, hung or used too much memory."""


class TransientError(MeasurementError):
    """A failure that may not happen again: it is recorded, but never cached."""


class Disconnected(TransientError):
    """The connection to a device was lost, or cannot be made now."""


class NoFeasibleCandidate(CompressError):
    """No candidate that was found meets all of the constraints."""
