"""Layers, storages over storages: each adds one feature, and passes all other calls through."""
