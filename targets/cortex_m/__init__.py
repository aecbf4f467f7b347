"""The target ``cortex-m``: TensorFlow Lite Micro with CMSIS-NN kernels on an emulated Cortex-M, instructions counted."""
