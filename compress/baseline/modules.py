"""The baseline: the task's model as it came, kept in the run, never made twice.

``baseline/weights.pt`` holds the weights; ``baseline/module.pt`` the module that a function made, so that a
continued run need not call (train) it again. Both load with ``weights_only=True``: nothing is let through but
``nn.Module`` subclasses that the process has imported already, and torch's activation functions.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from compress.networks.accepted import check_accepted
from compress.networks.calling import Calling, called, check_argument_names, writes_to_inputs
from compress.networks.fingerprints import state_hash, tensor_hash
from compress.networks.plain_copies import other_floats, unwrap
from compress.networks.running import broken_weight, threads
from compress.networks.weights_files import read_weights, write_weights
from compress.tasks.tasks import Task
from compress.tasks.user_code import guarded
from compress.values.error_lines import one_line
from compress.values.printable import printable
from targets.errors import RunError, TaskError

_FUNCTIONS = ("torch.nn.functional", "torch._C._nn")
"""Where the functions live that a layer keeps as its activation (``nn.TransformerEncoderLayer`` does)."""
_ACTIVATIONS = ("gelu", "relu", "silu", "elu", "selu", "leaky_relu", "mish", "hardswish", "softplus", "tanh", "sigmoid")


def make_module(task: Task, *, trained: bool = True) -> nn.Module:
    """The task's module on the CPU in eval mode, a copy or freshly made by its function.

    ``trained=False`` asks a function that has a parameter ``trained`` for the bare network (dry runs).
    """
    made: Any
    if isinstance(task.model, nn.Module | torch.export.ExportedProgram | torch.jit.ScriptFunction):
        made = task.model
    elif callable(task.model):
        function: Callable[..., Any] = task.model
        try:
            knows = "trained" in inspect.signature(function).parameters
        except ValueError:  # of a builtin nobody knows what it takes
            knows = False
        with threads(_half_the_cores()), _seeded():
            made = guarded(
                f"the model function of task {task.name!r}", lambda: function(trained=trained) if knows else function()
            )
        if not isinstance(made, nn.Module):
            raise TaskError(
                f"the model function of task {task.name!r} returned {type(made).__name__}, not an nn.Module"
            )
    else:
        raise TaskError(
            f"task {task.name!r}: model is {type(task.model).__name__}; give an nn.Module, a function or an .onnx path"
        )
    whole = made
    check_accepted(whole, f"the model of task {task.name!r}")
    check_shapes(whole, task.name)
    network: nn.Module = guarded(f"copying the model of task {task.name!r}", lambda: unwrap(whole, task.name)).eval()
    check_module(network, task.name)
    if kinds := other_floats(made):
        kind = "half precision" if kinds[0] != "float64" else "double precision"
        print(f"the model is in {kind}: it is worked with, and compared with, in float32", file=sys.stderr)
    return network


def callable_by_place(module: nn.Module, inputs: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> nn.Module:
    """``module`` itself, from now on called with tensors by place; those that it writes to are copied for it.

    ``inputs``: a few samples of each input; ``names``: of the arguments that they are meant for, empty where they are
    given by place. Raises TaskError for names that its forward lacks.
    """
    if names:
        check_argument_names(module, names)
    called(module, Calling(names))
    try:
        copied = writes_to_inputs(module, inputs)
    except Exception:  # what does not run is told where it is exported
        copied = False
    return called(module, Calling(names, copied))


def check_shapes(module: nn.Module, name: str) -> None:
    """Raise TaskError for weights that are not made yet."""
    for key, tensor in module.state_dict().items():
        if nn.parameter.is_lazy(tensor):
            raise TaskError(
                f"task {name!r}: weight {key!r} has no shape yet; call the model once on an example before giving it"
            )


def check_module(module: nn.Module, name: str) -> None:
    """Raise TaskError for weights that cannot be worked with."""
    if not any(True for _ in module.parameters()):
        raise TaskError(f"task {name!r}: the model has no parameters")
    key = broken_weight(module)
    if key is not None:
        raise TaskError(
            f"task {name!r}: weight {key!r} holds NaN or infinite values; train the model again or clean it"
        )


def save(module: nn.Module, folder: Path, *, whole: bool) -> None:
    """Keep weights, and with ``whole`` the module itself, in a run's ``baseline`` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if whole:
        try:
            _save(module, folder / "module.pt")
        except OSError:
            raise
        except Exception as error:
            # Classes made inside functions cannot be stored; a continued run then makes the module again.
            print(
                f"the baseline module cannot be stored ({printable(one_line(error))}); only its weights are",
                file=sys.stderr,
            )
            for name in (".module.pt", "module.pt"):
                (folder / name).unlink(missing_ok=True)
    _save(module.state_dict(), folder / "weights.pt")


def holds(path: Path, module: nn.Module) -> bool:
    """Whether a weights file holds the module's very weights."""
    try:
        return tensor_hash(read_weights(path)) == state_hash(module)
    except (OSError, ValueError, AttributeError):
        return False


def load(task: Task, folder: Path) -> nn.Module:
    """The baseline a run has kept: the stored weights in the task's module, or the stored module."""
    module = None
    if not isinstance(task.model, nn.Module):
        module = _load_module(folder / "module.pt")
    # Its weights are here: a function that can make the bare network need not train it again.
    module = make_module(task, trained=False) if module is None else module
    path = folder / "weights.pt"
    try:
        state = read_weights(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{str(path)!r} cannot be read: {one_line(error)}; choose another --out") from None
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise RunError(
            f"the run is of another model: {str(error).splitlines()[-1].strip()}; choose another --out"
        ) from None
    return module.eval()


def _save(value: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    try:
        write_weights(value, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _load_module(path: Path) -> nn.Module | None:
    """The stored module, or None where it is absent or needs a class that is not to be trusted or found."""
    if not path.exists():
        return None
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    try:
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(str(path)):
            module_name, _, attribute = name.rpartition(".")
            found = getattr(sys.modules.get(module_name), attribute, None)
            if isinstance(found, type) and issubclass(found, nn.Module):
                allowed.append(found)
            elif module_name in _FUNCTIONS and attribute in _ACTIVATIONS:
                allowed.append((cast(Callable[..., Any], found), name))
            else:
                return None
        with torch.serialization.safe_globals(allowed):
            loaded = torch.load(path, weights_only=True)
    except Exception:  # whatever a damaged or forged file makes of the reader: the model is then made again
        return None
    return loaded if isinstance(loaded, nn.Module) else None


def _half_the_cores() -> int:
    """Threads for a model function. The other half gains little, and costs much as soon as anything else runs."""
    return max(1, (os.cpu_count() or 1) // 2)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """A model function that does not seed itself is given the same seed every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
