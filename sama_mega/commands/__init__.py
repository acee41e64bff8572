"""One module per command; each `run` takes plain values and returns the exit status."""
