"""A module and its example inputs as they are brought, made fit to be run, followed and cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from compress.networks.accepted import check_accepted
from compress.networks.calling import by_name, input_names
from compress.networks.plain_copies import plain_layers, unwrapped
from compress.networks.running import as_inputs
from compress.values.error_lines import one_line
from targets.errors import TaskError

ExampleInputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""A tensor, a tuple of tensors, or a dict of them by the names of forward's arguments; batch first."""


def ready(module: nn.Module, example_inputs: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """(``module`` out of its wrappers, with ordinary weights, to be called with tensors by place; the inputs for it).

    The module itself where it is like that already, else a copy. Raises TaskError for a kind of module that cannot be
    worked with or copied, for ``example_inputs`` that are no ``ExampleInputs``, and for names that forward lacks.
    """
    inputs = as_inputs(example_inputs)
    check_accepted(module)
    try:
        return by_name(plain_layers(unwrapped(module)), input_names(example_inputs)), inputs
    except TaskError:
        raise
    except Exception as error:
        raise uncopied(error) from error


def uncopied(error: Exception) -> TaskError:
    """What is raised for a module that deepcopy refuses with ``error``."""
    return TaskError(
        f"the model cannot be copied ({one_line(error, kind=True)}): pruning needs a module that deepcopy takes"
    )
