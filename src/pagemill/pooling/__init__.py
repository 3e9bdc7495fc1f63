"""From hidden states to one vector for each request."""
