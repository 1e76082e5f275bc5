"""Training: loss, optimizer, state, step, loop and checkpoints."""
