"""Reconstructive Neuron Pruning (Li et al., ICML 2023) as an MLflow project."""

__version__ = "0.1.0"
