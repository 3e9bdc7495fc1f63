"""Guessing tokens ahead, so that one step may yield several."""
