"""A model as plain layers, in a copy: out of its wrappers, on the CPU, in float32, weights without parametrizations.

``DataParallel`` and compiled modules give way to what they hold; ``weight_norm``, ``spectral_norm`` and masks of
``torch.nn.utils.prune`` are computed once and stay as ordinary weights, and so do those that a layer of the user's own
standardises at each call (``computed_weights.py``).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.networks.computed_weights import ordinary_layer
from targets.errors import TaskError

MOST_BYTES = 2 * 10**9
"""Weights beyond this do not fit into one ONNX file."""
_HOOKS = ("torch.nn.utils.prune", "torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")
OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
"""Types of weights and data that are made float32, which every runtime computes in."""


def unwrap(module: nn.Module, name: str) -> nn.Module:
    """A plain copy of ``module`` on the CPU, in float32; modes and ``requires_grad`` as they were.

    ``name``: the task's, for messages. Raises TaskError for weights without values (on the meta device) and for more
    than ``MOST_BYTES`` of them.
    """
    _check(unwrapped(module), name)
    return in_single_precision(plain_copy(module).to("cpu"))


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy of ``module`` without wrappers and computed weights; devices and types stay. Raises what deepcopy does."""
    module = unwrapped(module)
    # Weights that a hook computes are no leaves, which deepcopy refuses.
    computed = [x for m in module.modules() for x in vars(m).values() if isinstance(x, Tensor) and not x.is_leaf]
    copied: nn.Module = copy.deepcopy(module, {id(x): x.detach().clone() for x in computed})
    for child in list(copied.modules()):
        if unwrapped(child) is not child:
            replace_everywhere(copied, child, unwrapped(child))
    for layer in list(copied.modules()):
        _without_hooks(layer)
    for layer in list(copied.modules()):
        ordinary = ordinary_layer(layer)
        if ordinary is not None and layer is copied:
            return ordinary
        if ordinary is not None:
            replace_everywhere(copied, layer, ordinary)
    return copied


def plain_layers(module: nn.Module) -> nn.Module:
    """``module`` itself, or a plain copy where some weights are computed at each call or a layer is in a wrapper.

    A layer that is compiled would be compiled anew for every width that is tried. Raises what deepcopy does.
    """
    layers = list(module.modules())
    plain = all(unwrapped(layer) is layer and not _is_computed(layer) for layer in layers)
    return module if plain else plain_copy(module)


def replace_everywhere(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is a submodule in ``module``, in place: it may be there under several names."""
    for parent in list(module.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, key, new)


def in_single_precision(module: nn.Module) -> nn.Module:
    """``module`` itself, its weights and buffers made float32 in place where they are of another floating type."""
    return module.float() if other_floats(module) else module


def other_floats(module: nn.Module) -> list[str]:
    """Names of the floating types other than float32 that weights and buffers of ``module`` are of."""
    found = {tensor.dtype for tensor in (*module.parameters(), *module.buffers())}
    return [str(kind).removeprefix("torch.") for kind in OTHER_FLOATS if kind in found]


def full_precision(tensor: Tensor) -> Tensor:
    """``tensor`` as float32 where it is in half precision (float16 or bfloat16), else ``tensor`` itself."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def single_precision(tensor: Tensor) -> Tensor:
    """``tensor`` as float32 where it is of another floating type, else ``tensor`` itself."""
    return tensor.float() if tensor.dtype in OTHER_FLOATS else tensor


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``module`` where that is a wrapper (data parallel, compiled), else ``module`` itself."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module.get_submodule("_orig_mod")  # its class comes with the compiler, which is slow to import
        else:
            return module


def _check(module: nn.Module, name: str) -> None:
    """Raise TaskError for weights without values, or too many of them, before anything is copied."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for key, tensor in tensors.items():
        if tensor.is_meta:
            raise TaskError(
                f"task {name!r}: weight {key!r} is on the meta device and has no values; load the weights "
                "before giving the model"
            )
    sizes = [x.numel() * x.element_size() for x in tensors.values() if not nn.parameter.is_lazy(x)]
    if sum(sizes) > MOST_BYTES:
        raise TaskError(
            f"task {name!r}: the model's weights take {sum(sizes) / 1e9:.1f} GB; networks of up to "
            f"{MOST_BYTES / 1e9:.0f} GB can be worked with, since an ONNX file holds no more"
        )


def _is_computed(layer: nn.Module) -> bool:
    hooks: Any = layer._forward_pre_hooks.values()
    if parametrize.is_parametrized(layer) or any(type(hook).__module__ in _HOOKS for hook in hooks):
        return True
    # What a forward with gradients left behind is no leaf, which deepcopy refuses.
    left = any(isinstance(value, Tensor) and not value.is_leaf for value in vars(layer).values())
    return left or ordinary_layer(layer) is not None


def _without_hooks(layer: nn.Module) -> None:
    """Parametrizations, old and new, and pruning masks are applied for good."""
    if parametrize.is_parametrized(layer):
        parametrizations: Any = layer.parametrizations
        parametrizations.eval()  # spectral_norm moves on at every look while it trains
        # Copies share the class that torch made for the original, and removing changes the class.
        kind = type(layer)
        own = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
        layer.__class__ = type(kind.__name__, kind.__bases__, own)
        for key in list(parametrizations):
            parametrize.remove_parametrizations(layer, key, leave_parametrized=True)
        # weight_norm leaves behind what reads its older files: a local function, which nothing pickles.
        for number, hook in list(layer._load_state_dict_pre_hooks.items()):
            if getattr(hook, "hook", hook).__module__ == "torch.nn.utils.parametrizations":
                del layer._load_state_dict_pre_hooks[number]
    for number, hook in list(layer._forward_pre_hooks.items()):
        found: Any = hook
        if type(found).__module__ in _HOOKS:
            with torch.no_grad():
                found.remove(layer)
            layer._forward_pre_hooks.pop(number, None)
