"""onnx_files"""
