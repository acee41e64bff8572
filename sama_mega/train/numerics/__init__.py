"""Looks at the numbers of a step: statistics by layer at an interval, and the first tensor that is not finite."""
