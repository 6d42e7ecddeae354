"""How a stage runs: parameters, files, errors, seeds, progress, checkpoints, tracking."""
