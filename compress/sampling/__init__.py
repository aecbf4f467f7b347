"""Which config is tried next: first the ones that usually do well, then what Optuna's samplers propose."""
