"""Making a graph: exports checked against PyTorch, and the manifest that vouches for them."""
