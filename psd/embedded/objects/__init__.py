"""The objects of the embedded world, as signed distances."""
