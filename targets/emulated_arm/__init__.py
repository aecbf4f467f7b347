"""The target ``arm-emulated``: ONNX Runtime in a small ARM system under qemu, whose instructions are counted."""
