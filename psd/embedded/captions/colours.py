"""The colour words of the embedded captions."""

COLOURS: dict[str, tuple[float, float, float]] = {  # sRGB in [0, 1]
    "red": (0.86, 0.09, 0.10),
    "orange": (0.98, 0.50, 0.04),
    "yellow": (0.98, 0.88, 0.10),
    "green": (0.12, 0.62, 0.18),
    "blue": (0.10, 0.27, 0.88),
    "purple": (0.48, 0.13, 0.70),
    "pink": (0.99, 0.54, 0.74),
    "brown": (0.43, 0.25, 0.11),
    "white": (0.96, 0.96, 0.96),
    "black": (0.12, 0.12, 0.12),
}
