"""ONNX graphs as torch networks, operator by operator."""
