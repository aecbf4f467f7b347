"""What is made ready before the first trial: the baseline's module and file, its measurements, its profile."""
