"""Triton kernels for CUDA; each is checked against its torch reference."""
