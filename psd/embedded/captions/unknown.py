"""What the embedded models do not know, with captions that they do."""


class UnknownCaption(ValueError):
    """The words are known, but they do not form a caption; ``nearest`` holds captions that do."""

    def __init__(self, text: str, nearest: list[str], problem: str = "is not a caption of the embedded world"):
        self.text, self.nearest = text, nearest
        super().__init__(f"{text!r} {problem}; the nearest known captions are: {'; '.join(nearest)}")


class UnknownWords(UnknownCaption):
    """Some words are not in the vocabulary: ``words`` names them."""

    def __init__(self, text: str, words: list[str], nearest: list[str]):
        self.words = words
        super().__init__(text, nearest, f"has words unknown to the embedded world ({', '.join(words)})")
