"""Many cells as one graph of steps: which there are, what they share, in which order and on which machines they run.

Knows neither torch nor MLflow: it is given a function that makes one step, and is told which are there.
"""
