"""Lightning callbacks: checkpoints, progress, the run folder, sampled texts."""
