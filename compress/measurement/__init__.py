"""What is measured of an ONNX file on a target: its latency against the baseline, and its quality."""
