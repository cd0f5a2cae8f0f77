"""Build TensorRT engines from a bundle's graph, and prove that their attention is fused."""
