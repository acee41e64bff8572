"""Tests on a real Slurm: slurmctld and one slurmd per node, all on this host."""
