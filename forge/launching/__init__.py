"""How runs start: sweeps, SLURM, the background, several processes, resume=."""
