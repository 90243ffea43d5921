"""Layers: thin classes that own views of the parameters and call kernels."""
