"""Objects of the embedded world: the collection of meshes, and what cameras see of a caption's object."""
