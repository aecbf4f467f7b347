"""The values of tensors inside an ONNX model for given samples: each is made an output of a copy of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from compress.precision.calibration_samples import Batches


def inner_values(
    model: onnx.ModelProto, names: Sequence[str], samples: Mapping[str, np.ndarray]
) -> Iterator[list[np.ndarray]]:
    """For each batch of ``samples``, the values of the tensors called ``names``, in their order.

    ``samples``: arrays by input name, samples first. Computed on the CPU, quantized layers in floats.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Fused, a product would have another output; and quantized layers are to be computed in floats.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    del copied.graph.output[:]
    copied.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in inputs)
    session = onnxruntime.InferenceSession(copied.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = [value.name for value in copied.graph.output]
    for batch in Batches(model, samples):
        found = {**batch, **dict(zip(made, session.run(made, dict(batch)), strict=True))} if made else dict(batch)
        yield [found[name] for name in names]
