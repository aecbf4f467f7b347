"""What stands in an ``.onnx`` file, read without the onnx package, which a small board does not have."""
