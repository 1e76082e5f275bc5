"""Expressions to BERT token ids: WordPiece over a BERT vocabulary.

What a person should know of how an expression is read.
"""

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
    """Lower-case an expression and cuts it into the pieces of a BERT vocabulary, as BERT's uncased models were trained.

    The work is done by the `tokenizers` library, the engine of transformers' fast BERT tokenizer; taken directly it
    imports in 10 ms where transformers takes a second, in every worker process. Objects can be pickled for those.
    """

    def __init__(self, vocabulary: str | os.PathLike[str] | Sequence[str], max_tokens: int = 20):
        """Args: a vocabulary, as a file with a word a line or as the words; L, with [CLS] and [SEP].

        Raises:
          UserError: no such file, no BERT vocabulary, or fewer than three tokens.
        """
        self.vocabulary = (
            _read(epath.Path(vocabulary)) if isinstance(vocabulary, str | os.PathLike) else tuple(vocabulary)
        )
        self.max_tokens = max_tokens
        self.truncated = 0  # expressions that were cut off so far, in this process
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
        """The tokens that the whole expression takes, [CLS] and [SEP] included; more than `max_tokens` are cut off."""
        return len(self._pieces.encode(expression).ids) + 2

    def encode(self, expression: str) -> tuple[Int32[np.ndarray, " l"], Bool[np.ndarray, " l"]]:
        """Turn an expression into [CLS] pieces [SEP] and zeros up to `max_tokens`.

        Of an expression that is too long the last pieces are dropped, never [SEP]; `truncated` counts those expressions
        and the first one is logged as a warning. "[SEP]" typed in an expression is text like any other.

        Returns:
          ids: the token ids, 0 after the end.
          mask: true for tokens, [CLS] and [SEP] among them.

        Raises:
          UserError: there is no word in the expression.
        """
        pieces = self._pieces.encode(expression).ids
        if not pieces:
            raise UserError(f"the expression {expression!r} has no words; say what is to be found")
        if len(pieces) > self.max_tokens - 2:
            self._note_truncation(expression, len(pieces) + 2)
            pieces = pieces[: self.max_tokens - 2]
        tokens = [self._ids[_START], *pieces, self._ids[_END]]
        ids = np.zeros(self.max_tokens, np.int32)
        ids[: len(tokens)] = tokens
        return ids, np.arange(self.max_tokens) < len(tokens)

    def words(self, ids: Int[np.ndarray, " l"]) -> list[str]:
        """The pieces behind token ids, for display: item j belongs to position j; the padding is left out."""
        return [self.vocabulary[index] for index in ids if index != 0]

    def save(self, path: epath.PathLike) -> None:
        """Write the vocabulary as a BERT `vocab.txt`, a word a line, from which it can be read again."""
        epath.Path(path).write_text("".join(f"{word}\n" for word in self.vocabulary), encoding="utf-8")

    def save_engine(self, path: str | Path) -> None:
        """Write all that `encode` does as a `tokenizer.json`, which the tokenizers library reads in every language."""
        from tokenizers.processors import TemplateProcessing

        engine = _word_pieces(self._ids)
        special = [(word, self._ids[word]) for word in (_START, _END)]
        engine.post_processor = TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=special)
        engine.enable_truncation(self.max_tokens)
        engine.enable_padding(length=self.max_tokens, pad_id=0, pad_token=_PAD)
        # Not by its own `save`, which tells of a full disk by an exception that says nothing to a program.
        Path(path).write_text(engine.to_str(pretty=True), encoding="utf-8")

    def __reduce__(self):
        return Tokenizer, (self.vocabulary, self.max_tokens)

    def _note_truncation(self, expression: str, length: int) -> None:
        self.truncated += 1
        if self.truncated == 1:
            _LOG.warning(
                "%r takes %d tokens and is cut to %d; longer expressions are counted from here on, not reported "
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
            f"there is no vocabulary at {path}; it is the vocab.txt that lies beside the weights of a BERT model, "
            "for example https://huggingface.co/google-bert/bert-base-uncased/blob/main/vocab.txt"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}; give the path of a vocab.txt") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a vocabulary: it is not UTF-8 text; give the path of a vocab.txt") from error
    return tuple(text.removesuffix("\n").split("\n"))  # not splitlines: an id is the number of a "\n" line


def _check(vocabulary: tuple[str, ...], name: str) -> None:
    missing = [word for word in (_PAD, _UNKNOWN, _START, _END) if word not in vocabulary]
    if missing:
        raise UserError(f"{name} is not a BERT vocabulary: {', '.join(missing)} not in it; give a vocab.txt of BERT")
    if vocabulary[0] != _PAD:
        raise UserError(f"{name} must begin with {_PAD}, whose id is 0; it begins with {vocabulary[0]!r}")
    if len(set(vocabulary)) != len(vocabulary):
        twice = next(word for index, word in enumerate(vocabulary) if word in vocabulary[:index])
        raise UserError(f"{name} has {twice!r} twice; every entry of a vocabulary must be there once")


def remarks(tokenizer: Tokenizer, expression: str) -> list[str]:
    """Return a remark for what is cut off an expression and one for words that the vocabulary does not know."""
    found = []
    length, limit = tokenizer.length(expression), tokenizer.max_tokens
    if length > limit:
        found.append(f"{expression!r} takes {length} tokens and is cut to the first {limit} (text.max_tokens)")
    unknown = [word for word in expression.split() if _is_unknown(tokenizer, word)]
    if unknown:
        found.append(f"not in the vocabulary, and so ignored or misread: {', '.join(map(repr, unknown))}")
    return found


def _is_unknown(tokenizer: Tokenizer, word: str) -> bool:
    has_pieces = tokenizer.length(word) > 2
    return has_pieces and "[UNK]" in tokenizer.words(tokenizer.encode(word)[0])
