"""ONNX Runtime: the target ``ort-cpu``, which products it computes in integers, and what its refusals mean."""
