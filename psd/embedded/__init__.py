"""The embedded models: their captions, objects and pictures, and how they are trained."""
