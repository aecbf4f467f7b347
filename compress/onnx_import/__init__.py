"""An ONNX graph as a torch network that can be pruned, trained and exported again, operator by operator."""
