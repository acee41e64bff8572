"""Jobs on a Slurm cluster: health of the nodes, submission, and whether a job starts again. Imports no torch."""
