"""Judged suites: real clips are edited, and a vision-language model says how well, category by category."""
