"""Components made from the preset, and help for the prompt."""
