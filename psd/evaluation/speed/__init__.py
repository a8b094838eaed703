"""How fast a run is, measured and on paper."""
