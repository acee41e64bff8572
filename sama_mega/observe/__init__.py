"""What a run shows: metrics file, progress, log, tracker, environment. Knows files and numbers, no model."""
