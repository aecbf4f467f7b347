"""Float ONNX models made ready to be quantized: plain in form, constants folded, masks known."""
