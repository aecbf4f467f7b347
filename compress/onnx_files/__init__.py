"""ONNX files: exported from torch, read and checked, made fit for old runtimes, compared with the network."""
