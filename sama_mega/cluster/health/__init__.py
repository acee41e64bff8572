"""The health check: all ranks of a job meet, tell what their nodes are like, and none starts unless all are well.

`check.py` is the order of things. Nothing here imports torch; `bandwidth.py` starts a process that does.
"""
