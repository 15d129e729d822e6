"""One model on the device: what answers, what it learned, and what comes from the fleet for it."""
