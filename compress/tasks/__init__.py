"""What the user brings: a task file, a recipe or an .onnx file, read and checked; its data; who a task is."""
