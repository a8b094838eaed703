"""Words that a tokenizer does not know: the embedded models read a fixed list of words, the released ones spell."""

from __future__ import annotations

from typing import Any


def has_closed_vocabulary(tokenizer: Any) -> bool:
    """Whether each word is one token, so that an unknown one has no meaning.

    Byte-pair tokenizers spell every word.  BERT's, which spells too, gives its unknown token for an emoji, as it did
    when its model was trained.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and type(backend.model).__name__ == "WordLevel"


def find_unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """Words of the prompt outside a closed vocabulary."""
    if not has_closed_vocabulary(tokenizer):
        return []
    none = tokenizer.unk_token_id
    return [word for word in prompt.split() if none in tokenizer(word, add_special_tokens=False).input_ids]
