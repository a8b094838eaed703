"""Read released checkpoint files as data and build the networks that they hold."""
