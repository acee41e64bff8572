"""What a run will take, before it starts: the work of a step, its messages, memory and time; needs no torch."""
