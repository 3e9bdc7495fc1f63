"""Kernels compiled side by side by a process of their own while the engine starts."""
