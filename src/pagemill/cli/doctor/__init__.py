"""`pagemill doctor`: what this machine is, what fits on it, and what would make it slow."""
