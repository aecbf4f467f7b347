"""Float ONNX models made ready to be quantized: in a plain form, constants folded, masks and what stays in float known."""
