"""The captions that the embedded models know."""
