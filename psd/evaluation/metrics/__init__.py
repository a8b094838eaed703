"""What is measured of a result."""
