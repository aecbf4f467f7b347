"""Lower precision: what makes a quantized network good, before, in and after training."""
