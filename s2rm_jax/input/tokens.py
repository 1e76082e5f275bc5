"""Tokens: BERT token ids of expressions, by WordPiece over a BERT vocabulary."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Bool, Int, Int32

from s2rm_jax.errors import UserError

_LOG = logging.getLogger(__name__)
_PAD, _UNKNOWN, _START, _END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


class Tokenizer:
    """Tokenizer of BERT's uncased models: lower-case text, cut into the pieces of a vocabulary.

    It uses the `tokenizers` library, the engine of transformers' fast BERT tokenizer, which imports in 10 ms in every
    worker process; transformers takes a second. Objects can be pickled.
    """

    def __init__(self, vocabulary: str | os.PathLike[str] | Sequence[str], max_tokens: int = 20):
        """Args: the vocabulary, as a file with one word per line or as the words; L, including [CLS] and [SEP].

        Raises:
          UserError: the file was not found or is no BERT vocabulary, or `max_tokens` is less than three.
        """
        self.vocabulary = (
            _read(epath.Path(vocabulary)) if isinstance(vocabulary, str | os.PathLike) else tuple(vocabulary)
        )
        self.max_tokens = max_tokens
        self.truncated = 0  # truncated expressions so far, in this process
        _check(self.vocabulary, str(vocabulary) if isinstance(vocabulary, str | os.PathLike) else "the list of words")
        if max_tokens < 3:
            raise UserError(f"max_tokens is {max_tokens}; it must be at least 3: [CLS], one word and [SEP]")
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}
        self._pieces = _word_pieces(self._ids)

    @property
    def size(self) -> int:
        """The number of entries of the vocabulary."""
        return len(self.vocabulary)

    def length(self, expression: str) -> int:
        """Return the number of tokens of the complete expression, including [CLS] and [SEP]."""
        return len(self._pieces.encode(expression).ids) + 2

    def has_unknown(self, text: str) -> bool:
        """Return whether a text has words that are not in the vocabulary."""
        return _UNKNOWN in self._pieces.encode(text).tokens

    def encode(self, expression: str) -> tuple[Int32[np.ndarray, " l"], Bool[np.ndarray, " l"]]:
        """Encode an expression as [CLS] pieces [SEP], padded with zeros to `max_tokens`.

        The last pieces of a long expression are dropped, but not [SEP]. `truncated` counts such expressions, and the
        first one is logged as a warning. "[SEP]" in the text of an expression is ordinary text.

        Returns:
          ids: the token ids, 0 for padding.
          mask: true for tokens, including [CLS] and [SEP].

        Raises:
          UserError: the expression has no words.
        """
        pieces = self._pieces.encode(expression).ids
        if not pieces:
            raise UserError(f"the expression {expression!r} has no words; describe what to find")
        if len(pieces) > self.max_tokens - 2:
            self._note_truncation(expression, len(pieces) + 2)
            pieces = pieces[: self.max_tokens - 2]
        tokens = [self._ids[_START], *pieces, self._ids[_END]]
        ids = np.zeros(self.max_tokens, np.int32)
        ids[: len(tokens)] = tokens
        return ids, np.arange(self.max_tokens) < len(tokens)

    def words(self, ids: Int[np.ndarray, " l"]) -> list[str]:
        """Return the pieces of token ids, for display; item j belongs to position j. Padding is left out."""
        return [self.vocabulary[index] for index in ids if index != 0]

    def save(self, path: epath.PathLike) -> None:
        """Write the vocabulary as a BERT `vocab.txt`, one word per line."""
        epath.Path(path).write_text("".join(f"{word}\n" for word in self.vocabulary), encoding="utf-8")

    def save_engine(self, path: str | Path) -> None:
        """Write the complete tokenizer as `tokenizer.json`, for the tokenizers library in any language."""
        from tokenizers.processors import TemplateProcessing

        engine = _word_pieces(self._ids)
        special = [(word, self._ids[word]) for word in (_START, _END)]
        engine.post_processor = TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=special)
        engine.enable_truncation(self.max_tokens)
        engine.enable_padding(length=self.max_tokens, pad_id=0, pad_token=_PAD)
        # The engine's own `save` raises an unspecific exception on a full disk.
        Path(path).write_text(engine.to_str(pretty=True), encoding="utf-8")

    def __reduce__(self):
        return Tokenizer, (self.vocabulary, self.max_tokens)

    def _note_truncation(self, expression: str, length: int) -> None:
        self.truncated += 1
        if self.truncated == 1:
            _LOG.warning(
                "%r takes %d tokens and is truncated to %d; further ones are counted but not logged "
                "(text.max_tokens raises the limit)",
                expression,
                length,
                self.max_tokens,
            )


def _word_pieces(ids: dict[str, int]):
    from tokenizers import Tokenizer as Engine
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    engine = Engine(WordPiece(ids, unk_token=_UNKNOWN))
    engine.normalizer = BertNormalizer(lowercase=True)  # also strips accents, as the uncased models expect
    engine.pre_tokenizer = BertPreTokenizer()
    return engine


def _read(path: epath.Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(
            f"vocabulary {path} not found; it is the vocab.txt beside the weights of a BERT model, "
            "for example https://huggingface.co/google-bert/bert-base-uncased/blob/main/vocab.txt"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}; give the path of a vocab.txt") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a vocabulary: it is not UTF-8 text; give the path of a vocab.txt") from error
    return tuple(text.removesuffix("\n").split("\n"))  # not splitlines: ids count "\n" only


def _check(vocabulary: tuple[str, ...], name: str) -> None:
    missing = [word for word in (_PAD, _UNKNOWN, _START, _END) if word not in vocabulary]
    if missing:
        raise UserError(f"{name} is not a BERT vocabulary: it lacks {', '.join(missing)}; give a vocab.txt of BERT")
    if vocabulary[0] != _PAD:
        raise UserError(f"{name} must begin with {_PAD}, whose id is 0; it begins with {vocabulary[0]!r}")
    if len(set(vocabulary)) != len(vocabulary):
        twice = next(word for index, word in enumerate(vocabulary) if word in vocabulary[:index])
        raise UserError(f"{name} has {twice!r} twice; every entry of a vocabulary must be unique")


def remarks(tokenizer: Tokenizer, expression: str) -> list[str]:
    """Return remarks on an expression for its user: it is truncated, or has words that are not in the vocabulary."""
    found = []
    length, limit = tokenizer.length(expression), tokenizer.max_tokens
    if length > limit:
        found.append(f"{expression!r} takes {length} tokens and is truncated to the first {limit} (text.max_tokens)")
    if tokenizer.has_unknown(expression):
        unknown = [word for word in expression.split() if tokenizer.has_unknown(word)]
        found.append(f"not in the vocabulary, so ignored or misread: {', '.join(map(repr, unknown))}")
    return found
