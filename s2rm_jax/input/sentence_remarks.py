"""What a person should know of how a sentence is read."""

from __future__ import annotations

from s2rm_jax.input.tokens import Tokenizer


def remarks(tokenizer: Tokenizer, sentence: str) -> list[str]:
    """Returns a remark for what is cut off a sentence and one for words that the vocabulary does not know."""
    found = []
    length, limit = tokenizer.length(sentence), tokenizer.max_tokens
    if length > limit:
        found.append(f"{sentence!r} takes {length} tokens and is cut to the first {limit} (text.max_tokens)")
    unknown = [word for word in sentence.split() if _is_unknown(tokenizer, word)]
    if unknown:
        found.append(f"not in the vocabulary, and so ignored or misread: {', '.join(map(repr, unknown))}")
    return found


def _is_unknown(tokenizer: Tokenizer, word: str) -> bool:
    has_pieces = tokenizer.length(word) > 2
    return has_pieces and "[UNK]" in tokenizer.words(tokenizer.encode(word)[0])
