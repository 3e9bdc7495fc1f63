"""Batches: files of requests that are answered one line at a time, and survive interruptions."""
