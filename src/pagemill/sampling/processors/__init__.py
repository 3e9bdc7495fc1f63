"""One file for each feature that changes logits."""
