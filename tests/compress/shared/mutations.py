"""Files as nobody should write them: seeded mutations of ONNX models, archives of arrays, JSON documents and bytes."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NAMES = (
    "",
    "x\x1b[2J",
    "a[/b]",
    "[red]",
    "x\npicked: all",
    "../../x",
    "\u202egpj",
    "n" * 5000,
    "%s{0}",
    "/",
    "猫",
    "\x00",
)
SIZES = (-(2**63), -1, 0, 1, 2, 3, 64, 1000, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
KINDS = (
    "Relu", "Add", "MatMul", "Gemm", "Conv", "Reshape", "Concat", "Split", "Loop", "If", "Scan", "Constant", "Tile",
    "ConstantOfShape", "Expand", "Range", "Pad", "Resize", "Gather", "LSTM", "Cast", "Shape", "Transpose", "Softmax",
    "QuantizeLinear", "DequantizeLinear", "NonZero", "TopK", "Where", "Identity", "Nonsense", "BatchNormalization",
    "Squeeze", "Slice", "OneHot", "RandomNormal", "SequenceConstruct", "Flatten", "MaxPool", "ReduceMean", "Einsum",
)  # fmt: skip
VALUES = (
    None, True, False, 0, -1, 1, 2**31, 10**400, 1e308, -0.5, float("nan"), float("inf"), "", "x", "\x1b[2J", "[/]",
    [], [1], [None], {}, {"a": 1}, [[[]]], "../../../etc/passwd", "quality", "fake", "ort-cpu", "2026", "\ud800",
)  # fmt: skip


def mutated_bytes(random: random.Random, data: bytes) -> bytes:
    """Some bytes changed, removed, repeated or put in."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5, 30))):
        at = random.randrange(len(made) + 1)
        kind = random.randrange(6)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(made):
            made[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del made[at : at + random.choice((1, 4, 100))]
        elif kind == 3:
            made[at:at] = made[at : at + random.choice((1, 8, 100))]
        elif kind == 4:
            made[at:at] = random.randbytes(random.choice((1, 4, 16)))
        else:
            del made[at if random.random() < 0.3 else len(made) :]
    return bytes(made)


def mutated_document(random: random.Random, document: Any) -> Any:
    """One to three values of a JSON document replaced, removed, renamed, or put one level deeper."""
    made = json.loads(json.dumps(document))
    for _ in range(random.choice((1, 1, 2, 3))):
        inside = [one for one in _containers(made) if one]
        if not inside:
            return copy.deepcopy(random.choice(VALUES))
        container = random.choice(inside)
        key = random.choice(list(container)) if isinstance(container, dict) else random.randrange(len(container))
        kind = random.randrange(6)
        if kind <= 2:
            container[key] = copy.deepcopy(random.choice(VALUES))
        elif kind == 3:
            del container[key]
        elif kind == 4 and isinstance(container, dict):
            container[random.choice((*NAMES, "schema", "id"))] = container.pop(key)
        else:
            container[key] = [container[key]]
    return made


def _containers(document: Any) -> list[Any]:
    found: list[Any] = []
    if isinstance(document, (dict, list)):
        found.append(document)
        for one in document.values() if isinstance(document, dict) else document:
            found += _containers(one)
    return found


def as_json(document: Any) -> bytes:
    """The text of a document, NaN and lone surrogates included."""
    return json.dumps(document).encode()


DEEP = b"[" * 100_000 + b"]" * 100_000
"""JSON that is nested deeper than a parser may go."""


def archive(random: random.Random, arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz file with something wrong in an array, in its name, in the archive or in its bytes."""
    found: dict[str, np.ndarray] = dict(arrays)
    name = random.choice(list(found))
    array = found[name]
    changes: tuple[Callable[[], Any], ...] = (
        lambda: array.astype(random.choice(("f2", "f8", "i1", "i8", "u8", "bool", "S3", "U3", "c8", "M8[s]"))),
        lambda: array[: random.randrange(3)],
        lambda: array[..., : array.shape[-1] // 2] if array.ndim else array,
        lambda: array.reshape(-1),
        lambda: array * np.float32("nan") if array.dtype.kind == "f" else array,
        lambda: np.zeros(()),
        lambda: np.array([object()] * len(array), dtype=object) if array.ndim else array,
        lambda: np.zeros(len(array), [("a", "f4"), ("b", "i2")]) if array.ndim else array,
    )
    kind = random.randrange(5)
    if kind <= 1:
        with contextlib.suppress(ValueError):  # text is no number
            found[name] = random.choice(changes)()
    elif kind == 2:
        found[random.choice(NAMES) or "labels"] = found.pop(name)
    found.setdefault("split", np.array(["train", "val", "test", "x"])) if random.random() < 0.1 else None
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as file:
        for key, value in found.items():
            inner = io.BytesIO()
            np.lib.format.write_array(inner, np.asarray(value), allow_pickle=True)
            content = inner.getvalue()
            if kind == 3 and key == name:
                content = mutated_bytes(random, content)
            elif random.random() < 0.05:
                content = _lying_header(random, content)
            file.writestr(zipfile.ZipInfo(f"{key or 'x'}.npy".replace("\x00", "0")), content)
    return mutated_bytes(random, buffer.getvalue()) if kind == 4 else buffer.getvalue()


def _lying_header(random: random.Random, content: bytes) -> bytes:
    """An array that is said to be far larger than it is."""
    shape = f"({random.choice((10**6, 10**12, 2**62, -1))},)"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return content[:8] + len(header).to_bytes(2, "little") + header + content[-64:]


def mutated_model(random: random.Random, model: onnx.ModelProto) -> bytes:
    """The bytes of a copy of ``model`` in which one to three things are wrong."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for _ in range(random.choice((1, 1, 2, 3))):
        change = random.choice(_CHANGES)
        try:
            change(random, made)
        except (ValueError, IndexError, TypeError, AttributeError):  # nothing there to change in that way
            continue
    return made.SerializeToString()


def _names(random: random.Random, model: onnx.ModelProto) -> str:
    known = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return random.choice((*known, *NAMES))


def _value(random: random.Random, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    return random.choice([*model.graph.input, *model.graph.output, *model.graph.value_info])


def _dimension(random: random.Random, model: onnx.ModelProto) -> None:
    dims = _value(random, model).type.tensor_type.shape.dim
    if random.random() < 0.2:
        dims.add().dim_value = random.choice(SIZES)
    elif random.random() < 0.2:
        del dims[random.randrange(len(dims))]
    elif random.random() < 0.2:
        random.choice(dims).dim_param = random.choice(NAMES)
    else:
        random.choice(dims).dim_value = random.choice(SIZES)


def _type(random: random.Random, model: onnx.ModelProto) -> None:
    value = _value(random, model)
    kind = random.randrange(5)
    if kind == 0:
        value.type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [1])))
    elif kind == 1:
        value.type.Clear()
    elif kind == 2:
        value.type.CopyFrom(helper.make_optional_type_proto(helper.make_tensor_type_proto(1, None)))
    else:
        value.type.tensor_type.elem_type = random.choice((0, 7, 8, 9, 10, 11, 14, 16, 17, 21, 22, 23, 99, 2**31 - 1))


def _rename_value(random: random.Random, model: onnx.ModelProto) -> None:
    value = _value(random, model)
    old, new = value.name, random.choice(NAMES)
    value.name = new
    if random.random() < 0.7:
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]


def _rewire(random: random.Random, model: onnx.ModelProto) -> None:
    node = random.choice(model.graph.node)
    names = random.choice((node.input, node.output))
    kind = random.randrange(4)
    if kind == 0:
        del names[random.randrange(len(names))]
    elif kind == 1:
        names.append(_names(random, model))
    else:
        names[random.randrange(len(names))] = _names(random, model)


def _nodes(random: random.Random, model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    kind = random.randrange(5)
    if kind == 0:
        random.shuffle(nodes)
    elif kind == 1:
        nodes.append(random.choice(nodes))
    elif kind == 2:
        nodes.remove(random.choice(nodes))
    elif kind == 3:
        nodes = []
    else:
        nodes[0].input[0] = nodes[-1].output[0]  # in a circle
    copies = [onnx.NodeProto.FromString(one.SerializeToString()) for one in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _operator(random: random.Random, model: onnx.ModelProto) -> None:
    node = random.choice(model.graph.node)
    node.op_type = random.choice((*KINDS, *NAMES))
    if random.random() < 0.2:
        node.domain = random.choice(("ai.onnx.ml", "com.microsoft", "nowhere", *NAMES))


def _node_name(random: random.Random, model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = random.choice(NAMES)


def _attribute(random: random.Random, model: onnx.ModelProto) -> None:
    node = random.choice(model.graph.node)
    kind = random.randrange(8)
    name = random.choice(("axis", "axes", "to", "perm", "value", "pads", "kernel_shape", "body", "group", "alpha", ""))
    if node.attribute and kind < 4:
        one = random.choice(node.attribute)
        if kind == 0:
            node.attribute.remove(one)
        elif kind == 1:
            one.type = random.choice((0, 1, 2, 3, 4, 5, 6, 7))
        elif kind == 2:
            one.i = random.choice(SIZES)
            one.ints[:] = [random.choice(SIZES) for _ in one.ints]
            one.f = random.choice((0.0, float("nan"), -1e38))
        else:
            one.name = random.choice((name, *NAMES))
    elif kind == 4:
        node.attribute.append(helper.make_attribute(name, random.choice((1, 1.5, "text", [1, -1], [0.5]))))
    elif kind == 5:
        node.attribute.append(helper.make_attribute(name, numpy_helper.from_array(np.zeros(3, np.float32), "t")))
    elif kind == 6:
        node.attribute.append(helper.make_attribute(name, model.graph))
    else:
        node.attribute.add().name = name


def _initializer(random: random.Random, model: onnx.ModelProto) -> None:
    tensors = model.graph.initializer
    tensor = random.choice(tensors)
    kind = random.randrange(10)
    if kind == 0:
        tensors.remove(tensor)
    elif kind == 1:
        tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data) + 1)]
    elif kind == 2:
        tensor.data_type = random.choice((0, 1, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 21, 22, 99))
    elif kind == 3:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(SIZES)
    elif kind == 4:
        del tensor.dims[:]
    elif kind == 5:
        tensor.name = random.choice((*NAMES, _names(random, model)))
    elif kind == 6:
        tensors.append(tensor)
    elif kind == 7:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        where = random.choice(("weights.bin", "/etc/passwd", "../x", ".", "", "/dev/zero", *NAMES))
        tensor.external_data.add(key="location", value=where)
        if random.random() < 0.5:
            tensor.external_data.add(
                key=random.choice(("offset", "length", "x")), value=random.choice(("-1", "x", "9" * 30))
            )
    elif kind == 8:
        tensor.raw_data = random.randbytes(len(tensor.raw_data))
    else:
        tensor.float_data.extend([1.0, 2.0])


def _interface(random: random.Random, model: onnx.ModelProto) -> None:
    values = random.choice((model.graph.input, model.graph.output))
    kind = random.randrange(4)
    if kind == 0:
        del values[:]
    elif kind == 1:
        values.append(_value(random, model))
    elif kind == 2:
        values.add().name = _names(random, model)
    else:
        model.graph.input.add(name=random.choice(model.graph.initializer).name)


def _version(random: random.Random, model: onnx.ModelProto) -> None:
    kind = random.randrange(4)
    if kind == 0:
        model.opset_import[0].version = random.choice((-1, 0, 1, 5, 7, 9, 12, 13, 21, 23, 30, 999, 2**62))
    elif kind == 1:
        del model.opset_import[:]
    elif kind == 2:
        model.ir_version = random.choice((-1, 0, 1, 3, 4, 11, 12, 99))
    else:
        model.opset_import.append(helper.make_opsetid(random.choice(("", "nowhere", *NAMES)), 5))


def _metadata(random: random.Random, model: onnx.ModelProto) -> None:
    model.doc_string = model.producer_name = random.choice(NAMES)
    model.graph.name = random.choice(NAMES)
    model.metadata_props.add(key=random.choice(NAMES), value=random.choice(NAMES))


def _function(random: random.Random, model: onnx.ModelProto) -> None:
    """A function of the model's own that calls itself."""
    name = random.choice(("Mine", "Relu"))
    model.functions.append(
        helper.make_function(
            "nowhere", name, ["a"], ["b"], [helper.make_node(name, ["a"], ["b"], domain="nowhere")],
            [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)],
        )
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    node = random.choice(model.graph.node)
    node.op_type, node.domain = name, "nowhere"
    del node.attribute[:]
    del node.input[1:]


_CHANGES = (
    _dimension, _type, _rename_value, _rewire, _nodes, _operator, _node_name, _attribute, _initializer, _interface,
    _version, _metadata, _function,
)  # fmt: skip
