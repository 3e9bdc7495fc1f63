"""The endpoints of models that make vectors: embeddings, scores, ranks and classes."""
