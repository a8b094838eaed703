"""The world that ships: 288 kinds of low-poly objects, ten primitives, captions with a ground truth, and training."""
