"""Functions run in guarded child processes: one that hangs is killed, one that crashes takes nothing with it.

`sama_data.workers.pool` holds `WorkerPool`, all that its users need:

- `pool.py`: many threads' calls on a few workers, restarts, one more try for a job whose worker died;
- `process.py`: the parent's end of one worker: start, call with a time limit, kill;
- `child.py`: the worker's own loop;
- `messages.py`, `peer_memory.py`: what goes over the socket between them, and frames beside it.
"""
