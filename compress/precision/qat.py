"""Quantization-aware training whose exported file is integer throughout (Jacob et al. 2018).

The network is the graph that ONNX Runtime's own quantizer wrote: its QuantizeLinear/DequantizeLinear pairs become
quantizers with learned ranges, its integer weights the float weights they came from, quantized anew at every step.
It is imported into torch and shown to compute what the integer file does. So BatchNorm is folded, and nothing has to be
guessed about what is quantized where. After training, the float weights go back into the float file and the learned
ranges take the place of calibrated ones: the quantizer then writes the file as it always does.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.float_models.plain_models import LEAST_OPSET, read_plain
from compress.networks.running import evaluating, outputs_of
from compress.onnx_files.contents import attributes_of
from compress.onnx_files.graphs import read_unchecked
from compress.onnx_files.sessions import open_session
from compress.onnx_import import importer, importing
from compress.precision.fake_quantization import DOMAIN, KIND, ActivationQuantizer, WeightQuantizer, build
from compress.values.configs import Config, FinetuneSettings
from compress.values.error_lines import one_line
from compress.values.settings import rows_of
from targets.errors import QuantizeError

VERSION = 1
FLOATS = "weights.onnx"
"""The trained float weights, as a graph with BatchNorm folded."""
_LARGEST_ERROR = 0.05
"""Root mean square by which the network may differ from the integer file before it is trained, as a share of the
outputs': single values that fall on the other side of a rounding."""
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_EXAMPLES = 32


@dataclass(frozen=True)
class _Layer:
    """A layer whose weights are trained: its submodule, and the float file's names of weight and bias."""

    name: str
    weight: str
    bias: str
    turned: bool
    """Whether torch keeps the weight transposed."""
    axis: int
    """Of the output channels, in torch."""
    most: int
    """The largest integer of its weights."""


class QatNetwork(nn.Module):
    """The imported network while it is trained; a BatchNorm that could not be folded keeps its statistics."""

    def __init__(self, network: importing.ImportedNetwork, layers: tuple[_Layer, ...]) -> None:
        super().__init__()
        self.network, self.layers = network, layers

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs for ``inputs`` that the integer file computes."""
        return self.network(*inputs)

    def train(self, mode: bool = True) -> QatNetwork:
        """Set training mode, or eval mode, but for BatchNorm, which always works on its running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def quantizers(self) -> dict[str, ActivationQuantizer]:
        """The quantizers of activations, by the name of the tensor whose range they hold."""
        return {m.tensor: m for m in self.modules() if isinstance(m, ActivationQuantizer)}


def settings_of(config: Config) -> FinetuneSettings:
    """The training in int8: as the fine-tuning, for ``qat_epochs`` and at a share of its learning rate.

    Settings whose rows say that training in int8 does not use them are neutral.
    """
    neutral = {one.field: one.neutral for one in rows_of(FinetuneSettings).values() if not one.setting.in_int8_training}
    return replace(
        config.finetune,
        **{
            **neutral,
            "epochs": config.precision.qat_epochs,
            "lr": config.finetune.lr * config.precision.qat_lr,
        },
    )


def make_network(floats: Path, integers: Path, samples: Mapping[str, np.ndarray]) -> QatNetwork:
    """A network that computes what ``integers`` does, which ONNX Runtime's quantizer made of ``floats``.

    ``samples``: arrays by input name, samples first. Raises QuantizeError where it cannot be had.
    """
    few = {name: array[:_EXAMPLES] for name, array in samples.items()}
    graph, layers = _trainable(read_plain(floats, LEAST_OPSET), read_unchecked(integers))
    try:
        imported = importing.import_network(graph, few, {(DOMAIN, KIND): build})
    except importer.NotImportable as error:
        raise QuantizeError(f"{floats.name} cannot be trained in int8: {error}") from None
    except Exception as error:
        raise QuantizeError(
            f"{floats.name} cannot be trained in int8: importing it failed ({one_line(error)})"
        ) from None
    network = QatNetwork(_prepared(imported, layers), layers)
    _check(network, integers, few)
    return network


def write_floats(network: QatNetwork, floats: Path, destination: Path) -> None:
    """Write the float file ``floats``, with the weights of ``network`` in place of its own, to ``destination``."""
    model = read_plain(floats, LEAST_OPSET)
    found = {t.name: t for t in model.graph.initializer}
    for layer in network.layers:
        module = network.network.get_submodule(layer.name)
        weight = module.parametrizations["weight"].original  # type: ignore[index, union-attr]
        arrays = {layer.weight: weight.T if layer.turned else weight, layer.bias: module.bias}
        for name, array in arrays.items():
            if name and isinstance(array, Tensor):
                values = np.ascontiguousarray(array.detach().cpu().numpy()).reshape(tuple(found[name].dims))
                found[name].CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, destination)


def write_ranges(network: QatNetwork, ranges: Path, destination: Path) -> None:
    """Write the calibrated ``ranges`` (JSON, minmax), with the learned ones in their place, to ``destination``."""
    document = json.loads(ranges.read_text())
    for name, quantizer in network.quantizers().items():
        for end, value in zip(("lowest", "highest"), quantizer.limits(), strict=True):
            document["data"][name][end]["data"] = [float(value.detach())]
    destination.write_text(json.dumps(document))


def _trainable(floats: onnx.ModelProto, integers: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[_Layer, ...]]:
    """``integers`` with quantizers that can be trained and float weights, and its layers."""
    model = copy.deepcopy(integers)
    graph = model.graph
    values = {t.name: numpy_helper.to_array(t) for t in floats.graph.initializer}
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    pairs = {n.output[0]: n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants}
    stored = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants}
    layers: list[_Layer] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] in pairs:
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in pairs:
            node = _fake(pairs[node.input[0]], node.output[0], constants)
        elif node.op_type in _WEIGHTED and node.input[1] in stored:
            layer = _layer(f"layer{len(layers)}", node, stored, constants, values)
            node = copy.deepcopy(node)
            _place(graph, node, 1, f"{layer.name}.weight", values[layer.weight])
            if layer.bias:
                _place(graph, node, 2, f"{layer.name}.bias", values[layer.bias])
            layers.append(layer)
        nodes.append(node)
    nodes = [node for node in nodes if not _folded(graph, node, stored, constants)]
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [copy.deepcopy(node) for node in nodes if used.intersection(node.output)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model, tuple(layers)


def _folded(
    graph: onnx.GraphProto, node: onnx.NodeProto, stored: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
) -> bool:  # fmt: skip
    """Whether ``node`` only unpacks a constant that is not trained; then it is one, as it is computed with."""
    if stored.get(node.output[0]) != node:
        return False
    levels, scale, *zero = (constants[name] for name in node.input)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [-1 if i == axis % max(1, levels.ndim) else 1 for i in range(levels.ndim)] if scale.size > 1 else []
    offset = zero[0].astype(np.float32).reshape(shape) if zero else np.float32(0)
    values = (levels.astype(np.float32) - offset) * scale.reshape(shape)
    graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), node.output[0]))
    return True


def _fake(quantize: onnx.NodeProto, output: str, constants: Mapping[str, np.ndarray]) -> onnx.NodeProto:
    """One node for a QuantizeLinear and its DequantizeLinear."""
    scale, zero = constants[quantize.input[1]], constants[quantize.input[2]]
    if scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
        raise QuantizeError(f"{quantize.input[0]} is quantized by channel or to {zero.dtype}: that cannot be trained")
    limits = np.iinfo(zero.dtype)
    low, high = ((end - float(zero)) * float(scale) for end in (limits.min, limits.max))
    return helper.make_node(
        KIND, [quantize.input[0]], [output], domain=DOMAIN,
        # Outputs that share a range with their inputs (reshapes, pooling) are found by its name.
        tensor=quantize.input[1].removesuffix("_scale"), low=low, high=high,
        least=int(limits.min), most=int(limits.max),
    )  # fmt: skip


def _layer(
    name: str, node: onnx.NodeProto, stored: Mapping[str, onnx.NodeProto], constants: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
) -> _Layer:  # fmt: skip
    """What is to be known of the layer that ``node`` is; raises QuantizeError where it cannot be trained."""
    attributes = attributes_of(node)
    dequantize = stored[node.input[1]]
    weight = dequantize.input[0].removesuffix("_quantized")
    bias = node.input[2] if len(node.input) > 2 else ""
    bias = stored[bias].input[0].removesuffix("_quantized") if bias in stored else bias
    if weight not in values or (bias and bias not in values):
        raise QuantizeError(f"{node.name}: its float weights {weight!r} are not found; that cannot be trained in int8")
    axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1)
    turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes.get("transB", 0))
    array, scale = values[weight], constants[dequantize.input[1]].reshape(-1)
    if scale.size != array.shape[axis]:
        raise QuantizeError(f"{node.name} is not quantized by channel: that cannot be trained in int8")
    # 127, or 64 in seven bits: what the quantizer took its scales from.
    largest = np.abs(np.moveaxis(array, axis, 0).reshape(len(scale), -1)).max(1)
    most = round(float((largest / scale).max()))
    return _Layer(name, weight, bias, turned, 1 - axis if turned else axis, most)


def _place(graph: onnx.GraphProto, node: onnx.NodeProto, position: int, name: str, array: np.ndarray) -> None:
    """Let ``node`` read ``array`` under a name that tells its layer."""
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    node.input[position] = name


def _prepared(network: importing.ImportedNetwork, layers: tuple[_Layer, ...]) -> importing.ImportedNetwork:
    """Ranges shared by name, weights quantized, everything else as it is."""
    ranges: dict[str, ActivationQuantizer] = {}
    for name, module in list(network.named_children()):
        if isinstance(module, ActivationQuantizer):
            setattr(network, name, ranges.setdefault(module.tensor, module))
    network.requires_grad_(False)
    for quantizer in ranges.values():
        quantizer.requires_grad_(True)
    for layer in layers:
        weighted: Any = getattr(network, layer.name, None)
        if not isinstance(weighted, (nn.Linear, nn.modules.conv._ConvNd)):
            raise QuantizeError(
                f"the layer of {layer.weight!r} has no counterpart in torch: it cannot be trained in int8"
            )
        weighted.requires_grad_(True)
        parametrize.register_parametrization(weighted, "weight", WeightQuantizer(layer.axis, layer.most))
    return network


def _check(network: QatNetwork, integers: Path, samples: Mapping[str, np.ndarray]) -> None:
    """Raise QuantizeError where the network does not compute what the integer file does."""
    session = open_session(integers)
    if session.batch is not None:
        raise QuantizeError(
            f"{integers.name} cannot be trained in int8: it takes {session.batch} sample(s) at a time, and training "
            "takes batches; a network that exports with a free batch can"
        )
    names = [node.name for node in session.get_inputs()]
    expected = session.run(None, {name: samples[name] for name in names})[0]
    with evaluating(network), torch.no_grad():
        found = outputs_of(network(*(torch.from_numpy(samples[name]) for name in names)))[0].numpy()
    size = float(np.sqrt(np.mean(np.square(expected)))) or 1.0
    error = float(np.sqrt(np.mean(np.square(found - expected)))) / size
    # `not <=` so that NaN is caught as well.
    if not error <= _LARGEST_ERROR:
        raise QuantizeError(
            f"{integers.name} cannot be trained: imported into torch it differs by {error:.2g} of its outputs "
            f"where {_LARGEST_ERROR} is allowed"
        )


Train = Callable[[nn.Module, FinetuneSettings], nn.Module]
"""Trains a network in place, or gives back the one it trained."""


def train_integers(
    floats: Path, integers: Path, ranges: Path, samples: Mapping[str, np.ndarray], settings: FinetuneSettings,
    train: Train, folder: Path,
) -> tuple[Path, Path]:  # fmt: skip
    """Train what ``floats`` is when quantized as ``integers``; (float file, its ranges), both in ``folder``.

    ``ranges``: calibrated for ``floats`` (minmax). Raises QuantizeError where it cannot be trained, and what ``train``
    raises.
    """
    network = make_network(floats, integers, samples)
    before = set(network.state_dict())
    trained = train(network, settings)
    found = trained if isinstance(trained, QatNetwork) else network
    if set(found.state_dict()) != before:
        raise QuantizeError("training in int8 gave back another network than it was given")
    write_floats(found, floats, folder / FLOATS)
    write_ranges(found, ranges, folder / "learned.json")
    return folder / FLOATS, folder / "learned.json"
