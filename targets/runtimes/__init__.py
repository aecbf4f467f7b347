"""The programs that execute a model, a folder each: how it loads and runs a file, and the target it makes."""
