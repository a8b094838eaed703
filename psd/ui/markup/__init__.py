"""HTML and SVG that the tabs share; pure functions."""
