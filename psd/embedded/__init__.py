"""The world that ships: its captions, objects, pictures, and the training of its models."""
