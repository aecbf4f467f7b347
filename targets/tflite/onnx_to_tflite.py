"""From an ``.onnx`` file to a ``.tflite`` file: what a worker process does in the converter's own environment.

``onnx2tf`` writes the float file, ``ai-edge-quantizer`` makes integers of it with calibration samples. Both may be
wrong without a word, so the float file's outputs are held against ONNX Runtime's, and the way arrays go in and come
out, with channels last, is the one with which they agree. It is written into the file's metadata (``tflite_files.py``).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import ModelError
from targets.model_files.whole_models import read_model
from targets.tflite.fixed_models import fix_shapes, pool_means, refuse_quantized, write_matmuls_as_gemms
from targets.tflite.tflite_files import METADATA, Port, TfliteFile, read_tflite

TOLERANCE = 1e-4
"""Largest difference of a float file's output to ONNX Runtime's, as a share of the range of its values."""
FLOATS = ("fp32", "fp16")
STATIC = ("int8", "int8-float-io")
DYNAMIC = ("int8-dynamic", "int8-weights")
PRECISIONS = (*FLOATS, *STATIC, *DYNAMIC)
_COMPARED = 16
"""Samples on which files are held against each other."""
_MOST_LAYOUTS = 64
"""Ways of laying out arrays that are tried."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Source:
    """An ONNX model made ready, and what ONNX Runtime makes of a few samples."""

    model: Any
    inputs: tuple[tuple[str, str, bool], ...]
    """Name, element type, and whether its batch was open."""
    outputs: tuple[str, ...]
    feeds: tuple[Mapping[str, np.ndarray], ...]
    expected: tuple[Sequence[np.ndarray], ...]


def convert_float(arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray], say: Say) -> Any:
    """Write the float file: ``onnx`` and ``made`` are paths, the arrays samples, made up where there are none."""
    path = Path(arguments["onnx"])
    with _named(path), tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
        say(f"reading {path}")
        source = _read(path, arrays)
        say(f"converting {path} with onnx2tf")
        try:
            file, worst = _converted(source, Path(folder) / "plain", Path(arguments["made"]))
        except ModelError as error:
            # What depends on the batch alone is a constant now: the converter may know what is left.
            say(f"converting {path} with onnx2tf, its constants folded")
            try:
                folded = replace(source, model=_folded(source.model, Path(folder)))
                file, worst = _converted(folded, Path(folder) / "folded", Path(arguments["made"]))
            except Exception:
                raise error from None
    return {"worst": worst, "operators": list(file.operators)}, {}


def _converted(source: _Source, folder: Path, made: Path) -> tuple[TfliteFile, float]:
    """Write the float file of a model; returns it, and how far it is off; raises ModelError."""
    folder.mkdir()
    try:
        converted = _onnx2tf(source.model, folder)
        file, worst = _laid_out(converted, source)
    except (RuntimeError, ValueError, KeyError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:250]
        raise ModelError(f"cannot be converted for LiteRT: {text}") from None
    _write(converted, file, made)
    return file, worst


def _folded(model: Any, folder: Path) -> Any:
    """The model as ONNX Runtime rewrites it without operators of its own."""
    onnx, library = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    options: Any = library.SessionOptions()
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    library.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(str(folder / "folded.onnx"))


def convert_integers(arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray], say: Say) -> Any:
    """Write a file in another precision: ``float`` and ``made`` are paths, the arrays samples in ONNX's layout.

    Replies with decibels of signal to noise by output, against the float file on some of the samples.
    """
    source, made, precision = Path(arguments["float"]), Path(arguments["made"]), arguments["precision"]
    with _named(Path(arguments["onnx"])):
        before = read_tflite(source)
        feeds = list(_feeds(before, arrays, 1 << 30))
        say(f"quantizing {source} with ai-edge-quantizer")
        content = _quantized(source, before, precision, feeds)
        with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
            quantized = Path(folder) / "model.tflite"
            quantized.write_bytes(content)
            after = read_tflite(quantized)
            # Tensors are numbered anew, positions stay.
            after = replace(
                after,
                inputs=_moved(before.inputs, after.inputs),
                outputs=_moved(before.outputs, after.outputs),
            )
            _write(quantized, after, made)
        say(f"checking {made}")
        few = feeds[:_COMPARED] or list(_feeds(before, _made_up(before), 4))
        ratios = _decibels(_run(source, before, few), _run(made, after, few))
    names = [port.name for port in before.outputs]
    return {"sqnr": dict(zip(names, ratios, strict=True)), "operators": list(after.operators)}, {}


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the file begin with its path; whatever the libraries raise is one of them."""
    try:
        yield
    except ModelError as error:
        text = str(error)
        raise ModelError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except MemoryError:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:250]
        raise ModelError(f"{path}: cannot be converted for LiteRT: {text}") from None


def _read(path: Path, samples: Mapping[str, np.ndarray]) -> _Source:
    onnx: Any = importlib.import_module("onnx")
    model, inputs = read_model(path)
    refuse_quantized(model)
    opened = fix_shapes(model, inputs)
    kinds = [str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type))) for one in inputs]
    shapes = [tuple(axis.dim_value for axis in one.type.tensor_type.shape.dim) for one in inputs]
    feeds = tuple(_onnx_feeds([one.name for one in inputs], kinds, shapes, samples))
    session = importlib.import_module("onnxruntime").InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = tuple(session.run(None, dict(feed)) for feed in feeds)
    pool_means(model)
    write_matmuls_as_gemms(model)
    described = tuple((one.name, kind, free) for one, kind, free in zip(inputs, kinds, opened, strict=True))
    return _Source(model, described, tuple(one.name for one in model.graph.output), feeds, expected)


def _onnx_feeds(
    names: Sequence[str], kinds: Sequence[str], shapes: Sequence[tuple[int, ...]], samples: Mapping[str, np.ndarray]
) -> Iterator[Mapping[str, np.ndarray]]:
    """Some of the samples in batches of the model's size, or made-up ones."""
    random = np.random.default_rng(0)
    given = [name for name in names if name in samples]
    count = min([len(samples[name]) for name in given], default=4)
    for start in range(min(count, _COMPARED)):
        feed = {}
        for name, kind, shape in zip(names, kinds, shapes, strict=True):
            if name in samples and shape:
                feed[name] = np.asarray(samples[name])[np.arange(start, start + shape[0]) % count].astype(kind)
            elif np.dtype(kind).kind == "f":
                feed[name] = random.standard_normal(shape).astype(kind)
            else:
                feed[name] = random.integers(0, 2, shape).astype(kind)
        yield feed


def _onnx2tf(model: Any, folder: Path) -> Path:
    """The float file that onnx2tf makes; raises ModelError naming the operator that it cannot convert."""
    onnx: Any = importlib.import_module("onnx")
    onnx.save(model, str(folder / "model.onnx"))
    convert = importlib.import_module("onnx2tf").convert
    heard = io.StringIO()
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            convert(
                input_onnx_file_path=str(folder / "model.onnx"),
                output_folder_path=str(folder / "made"),
                copy_onnx_input_output_names_to_tflite=True,
                not_use_onnxsim=True,
                non_verbose=True,
            )
    except (Exception, SystemExit) as error:
        raise ModelError(explain(f"{error} {heard.getvalue()[-4000:]}")) from None
    made = sorted((folder / "made").glob("*float32.tflite"))
    if not made:
        raise ModelError(explain(heard.getvalue()[-4000:]))
    return made[0]


def explain(text: str) -> str:
    """What onnx2tf said, as one short line that names the operator where it does."""
    text = " ".join(re.sub(r"\x1b\[[\d;]*m", "", text).split())
    found = re.search(r"(?:op|op_type|onnx_op|ONNX op)\s*[=:]?\s*['\"]?([A-Z]\w+)['\"]?", text)
    reason = re.search(r"(?:reason|message|reason_code)\s*[=:]\s*['\"]?([^'\"\n]{3,160})", text)
    if found:
        why = f" ({reason.group(1).strip()})" if reason else ""
        return f"operator {found.group(1)} cannot be converted for LiteRT by onnx2tf{why}"
    return f"cannot be converted for LiteRT by onnx2tf: {text[:250] or 'it made no file'}"


def _laid_out(path: Path, source: _Source) -> tuple[TfliteFile, float]:
    """The file with the layout of arrays with which it computes what ONNX Runtime does, and how far it is off."""
    file = read_tflite(path)
    unknown = next((one for one in file.operators if one.startswith("CUSTOM:")), None)
    if unknown is not None:
        name = unknown.partition(":")[2]
        raise ModelError(f"operator {_onnx_name(name, source.model)} has no kernel in LiteRT")
    interpreter = _interpreter(path)
    best = float("inf")
    for inputs in itertools.islice(_layouts(file.inputs, source), _MOST_LAYOUTS):
        laid = replace(file, inputs=inputs)
        found = [_invoke(interpreter, laid, feed, raw=True) for feed in source.feeds]
        outputs, worst = _matched(file.outputs, source, found)
        if worst <= TOLERANCE:
            return replace(laid, outputs=outputs), worst
        best = min(best, worst)
    if best == float("inf"):
        raise ModelError("what onnx2tf made of it takes or gives arrays of other shapes; LiteRT cannot be used for it")
    raise ModelError(
        f"what onnx2tf made of it computes something else: an output is off by {best:.2g} of its range, more than "
        f"{TOLERANCE:g}; LiteRT cannot be used for it"
    )


def _onnx_name(custom: str, model: Any) -> str:
    """The ONNX operator that a custom one stands for: ``ONNX_UNIQUE`` is ``Unique``."""
    plain = custom.removeprefix("ONNX_").replace("_", "").lower()
    return next((str(node.op_type) for node in model.graph.node if node.op_type.lower() == plain), custom)


def _layouts(ports: Sequence[Port], source: _Source) -> Iterator[tuple[Port, ...]]:
    """The ways in which the inputs may be laid out, channels last first."""
    by_name = {port.name: port for port in ports}
    chosen = [by_name.get(name) or ports[number] for number, (name, _, _) in enumerate(source.inputs)]
    ways = []
    for port, (name, dtype, free) in zip(chosen, source.inputs, strict=True):
        shape = source.feeds[0][name].shape
        fitting = [axes for axes in _ways(len(shape)) if tuple(shape[axis] for axis in axes) == port.tensor.shape]
        ways.append([replace(port, name=name, dtype=dtype, axes=axes, open=free) for axes in fitting])
    return itertools.product(*ways)


def _ways(rank: int) -> list[tuple[int, ...]]:
    same = tuple(range(rank))
    return [(0, *range(2, rank), 1), same] if rank > 2 else [same]


def _matched(
    ports: Sequence[Port], source: _Source, found: Sequence[Sequence[np.ndarray]]
) -> tuple[tuple[Port, ...], float]:
    """The outputs in the order of the ONNX file with the layout that fits best, and the worst difference."""
    by_name = {port.name: port for port in ports}
    free = any(opened for _, _, opened in source.inputs)
    chosen, worst = [], 0.0
    for number, name in enumerate(source.outputs):
        port = by_name.get(name) or ports[number]
        expected = [one[number] for one in source.expected]
        kind = str(expected[0].dtype)
        options = []
        for axes in _ways(expected[0].ndim):
            laid = replace(port, name=name, axes=axes, dtype=kind, open=free and bool(axes))
            if tuple(expected[0].shape[axis] for axis in axes) == port.tensor.shape:
                got = [laid.out_of(one[port.position]) for one in found]
                options.append((_off(expected, got), laid))
        if not options:
            return tuple(ports), float("inf")
        difference, laid = min(options, key=lambda option: option[0])
        chosen.append(laid)
        worst = max(worst, difference)
    return tuple(chosen), worst


def _off(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """The largest difference as a share of the range of values; of integers, the share that differs."""
    a, b = np.stack(expected), np.stack(found)
    if not np.issubdtype(a.dtype, np.floating):
        return float((a != b).mean())
    clear = np.isfinite(a)
    if not np.array_equal(clear, np.isfinite(b)):
        return 1.0
    spread = float(np.ptp(a[clear])) if clear.any() else 0.0
    return float(np.abs(a[clear] - b[clear]).max(initial=0.0)) / max(spread, float(np.abs(a[clear]).max(initial=1e-6)))


def _moved(before: Sequence[Port], after: Sequence[Port]) -> tuple[Port, ...]:
    """The layout of ``before`` on the tensors of ``after``, which stand in the same positions."""
    by_position = {port.position: port for port in after}
    return tuple(
        replace(one, index=by_position[one.position].index, tensor=by_position[one.position].tensor) for one in before
    )


def _write(path: Path, file: TfliteFile, made: Path) -> None:
    """Write the file with its layout in the metadata."""
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    flatbuffers: Any = importlib.import_module("flatbuffers")
    content = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        # In a large file (256 kB of weights, to the quantizer) they lie behind the tables, which are written anew here.
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    said = {
        kind: [
            {"name": one.name, "position": one.position, "axes": one.axes, "dtype": one.dtype, "open": one.open}
            for one in ports
        ]
        for kind, ports in (("inputs", file.inputs), ("outputs", file.outputs))
    }
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(said, separators=(",", ":")).encode(), np.uint8)
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    own = METADATA.encode()
    model.metadata = [one for one in model.metadata or [] if one.name not in (METADATA, own)] + [entry]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    made.write_bytes(bytes(builder.Output()))


def _feeds(file: TfliteFile, samples: Mapping[str, np.ndarray], most: int) -> Iterator[Mapping[str, np.ndarray]]:
    """The samples, one batch of the file at a time, as its own tensors take them but for the quantization."""
    known = [port for port in file.inputs if port.name in samples]
    if len(known) < len(file.inputs):
        return
    count = min(len(samples[port.name]) for port in known)
    size = file.inputs[0].shape[0] or 1
    for start in range(0, min(count, most), size):
        yield {
            port.name: np.asarray(samples[port.name])[np.arange(start, start + size) % count].astype(port.dtype)
            for port in file.inputs
        }


def _made_up(file: TfliteFile) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        port.name: random.standard_normal((4, *(size or 1 for size in port.shape[1:]))).astype(port.dtype)
        for port in file.inputs
    }


def _quantized(path: Path, file: TfliteFile, precision: str, feeds: Sequence[Mapping[str, np.ndarray]]) -> bytes:
    quantizer: Any = importlib.import_module("ai_edge_quantizer.quantizer")
    types: Any = importlib.import_module("ai_edge_quantizer.qtyping")
    kinds = types.TFLOperationName
    algorithm: Any = importlib.import_module("ai_edge_quantizer.algorithm_manager").AlgorithmName
    made = quantizer.Quantizer(str(path))
    every = {"regex": ".*", "operation_name": kinds.ALL_SUPPORTED}
    if precision == "fp16":
        halves = types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT)
        config = types.OpQuantizationConfig(
            weight_tensor_config=halves, compute_precision=types.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        made.update_quantization_recipe(".*", kinds.ALL_SUPPORTED, config, algorithm.FLOAT_CASTING)
    elif precision == "int8-weights":
        made.add_weight_only_config(**every, num_bits=8)
    elif precision == "int8-dynamic":
        made.add_dynamic_config(**every, num_bits=8)
    else:
        made.add_static_config(**every, activation_num_bits=8, weight_num_bits=8)
        if precision == "int8-float-io":
            for kind in (kinds.INPUT, kinds.OUTPUT):
                made.update_quantization_recipe(".*", kind, algorithm_key=algorithm.NO_QUANTIZE)
    with contextlib.redirect_stdout(io.StringIO()):
        if not made.need_calibration:
            return bytes(made.quantize(enable_progress_report=False).quantized_model)
        if not feeds:
            raise ModelError("int8 needs calibration samples for every input; none were given")
        signature = next(iter(_interpreter(path).get_signature_list()))
        names = {port.name: port.tensor.name for port in file.inputs}
        calibration = [{names[name]: _port(file, name).into(x) for name, x in feed.items()} for feed in feeds]
        # As its own ``calibrate`` does, but for the ranges: a moving average of them over the samples, as that takes,
        # left 17 dB of signal to noise of a keyword spotter, where the smallest and largest values leave 33.
        library: Any = importlib.import_module("ai_edge_quantizer.calibrator")
        widest = importlib.import_module("ai_edge_quantizer.utils.qsv_utils").min_max_update
        calibrator = library.Calibrator(str(path), num_threads=1, qsv_update_func=widest)
        calibrator.calibrate({signature: calibration}, made._recipe_manager)
        found = calibrator.get_model_qsvs()
        return bytes(made.quantize(found, enable_progress_report=False).quantized_model)


def _port(file: TfliteFile, name: str) -> Port:
    return next(port for port in file.inputs if port.name == name)


def _interpreter(path: Path) -> Any:
    library: Any = importlib.import_module("ai_edge_litert.interpreter")
    # Kernels of LiteRT's own: what XNNPACK refuses may still run on a microcontroller.
    plain = library.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    made = library.Interpreter(str(path), num_threads=1, experimental_op_resolver_type=plain)
    made.allocate_tensors()
    return made


def _invoke(
    interpreter: Any, file: TfliteFile, feed: Mapping[str, np.ndarray], *, raw: bool = False
) -> list[np.ndarray]:
    for port in file.inputs:
        interpreter.set_tensor(port.index, port.into(feed[port.name]))
    interpreter.invoke()
    if raw:
        ordered = sorted(file.outputs, key=lambda port: port.position)
        return [interpreter.get_tensor(port.index) for port in ordered]
    return [port.out_of(interpreter.get_tensor(port.index)) for port in file.outputs]


def _run(path: Path, file: TfliteFile, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    interpreter = _interpreter(path)
    rows = [_invoke(interpreter, file, feed) for feed in feeds]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def _decibels(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> list[float | None]:
    """Signal to noise of every output; None for integers."""
    ratios: list[float | None] = []
    for a, b in zip(expected, found, strict=True):
        if not np.issubdtype(a.dtype, np.floating):
            ratios.append(None)
            continue
        if not np.isfinite(b).all() and np.isfinite(a).all():
            raise ModelError("quantized, it gives values that are not finite; LiteRT cannot be used for it in int8")
        a, b = a.astype(np.float64), b.astype(np.float64)
        noise = float(np.square(a - b).sum())
        ratios.append(200.0 if noise == 0 else float(np.clip(10 * np.log10(np.square(a).sum() / noise), -200, 200)))
    return ratios
