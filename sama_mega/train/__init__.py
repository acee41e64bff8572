"""Training: setup (`run.py`), when things happen (`loop.py`), what a step does (`step.py`), and hooks."""
