"""Tokens: BERT token ids of expressions, by WordPiece over a BERT vocabulary."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Int, Int32

from s2rm_jax.errors import UserError, first_of, one_line
from s2rm_jax.input.example import NO_WORDS, expression_problem

_LOG = logging.getLogger(__name__)
_PAD, _UNKNOWN, _START, _END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


class VocabularyError(UserError):
    """A vocabulary is missing or is not one of BERT; `problem` is the message without the advice."""

    def __init__(self, problem: str, advice: str):
        super().__init__(f"{problem}; {advice}")
        self.problem = problem


class Tokenizer:
    """Tokenizer of BERT: text, in lower case for uncased models, cut into the pieces of a vocabulary.

    It uses the `tokenizers` library, the engine of transformers' fast BERT tokenizer, which imports in 10 ms in every
    worker process; transformers takes a second. Objects can be pickled.
    """

    vocabulary: tuple[str, ...]
    max_tokens: int
    lower_case: bool
    truncated: int

    def __init__(
        self, vocabulary: str | os.PathLike[str] | Sequence[str], max_tokens: int = 20, lower_case: bool = True
    ):
        """Build a tokenizer.

        Args:
            vocabulary: a file with one word per line (vocab.txt), a tokenizer.json, or the words in the order of their
                ids.
            max_tokens: L, including [CLS] and [SEP].
            lower_case: as the model was trained; also strips accents, as uncased models expect.

        Raises:
            VocabularyError: the file was not found or is not a BERT vocabulary.
            UserError: the file is a tokenizer.json of another kind, or `max_tokens` is less than three.
        """
        name = "the list of words"
        if isinstance(vocabulary, str | os.PathLike):
            vocabulary, name = _read(epath.Path(vocabulary), lower_case), str(vocabulary)
        self.vocabulary, self.max_tokens, self.lower_case = tuple(vocabulary), max_tokens, lower_case
        self.truncated = 0  # truncated expressions so far, in this process
        if problem := _problem(self.vocabulary):
            raise VocabularyError(f"{name} {problem}", "give a vocab.txt of BERT")
        if max_tokens < 3:
            raise UserError(f"max_tokens is {max_tokens}; it must be at least 3: [CLS], one word and [SEP]")
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}
        self._pieces = _word_pieces(self._ids, lower_case)

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
        first one is logged as a warning. Special tokens such as "[SEP]" in the text of an expression are ordinary text.

        Returns:
            ids: the token ids, 0 for padding.
            mask: true for tokens, including [CLS] and [SEP].

        Raises:
            UserError: the expression has no words or is not valid Unicode.
        """
        if problem := expression_problem(expression):
            raise UserError(f"the expression {expression!r:.80} {problem}")
        pieces = self._pieces.encode(expression).ids
        if not pieces:
            raise UserError(f"the expression {expression!r:.80} {NO_WORDS}")
        if len(pieces) > self.max_tokens - 2:
            self.truncated += 1
            if self.truncated == 1:
                _LOG.warning(
                    "the expression %.80r has %d tokens and is truncated to %d; further truncated expressions are not "
                    "logged; to keep more tokens, raise config.text.max_tokens",
                    *(expression, len(pieces) + 2, self.max_tokens),
                )
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

        engine = _word_pieces(self._ids, self.lower_case)
        special = [(word, self._ids[word]) for word in (_START, _END)]
        engine.post_processor = TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=special)
        engine.enable_truncation(self.max_tokens)
        engine.enable_padding(length=self.max_tokens, pad_id=0, pad_token=_PAD)
        # The engine's own `save` raises an unspecific exception on a full disk.
        Path(path).write_text(engine.to_str(pretty=True), encoding="utf-8")

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[tuple[str, ...], int, bool]]:
        return Tokenizer, (self.vocabulary, self.max_tokens, self.lower_case)


def _word_pieces(ids: dict[str, int], lower_case: bool) -> Any:
    from tokenizers import Tokenizer as Engine
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    engine = Engine(WordPiece(ids, unk_token=_UNKNOWN))
    engine.normalizer = BertNormalizer(lowercase=lower_case)  # strips accents if it lower-cases
    engine.pre_tokenizer = BertPreTokenizer()
    return engine


def words_and_case(engine: Any, name: str) -> tuple[tuple[str, ...], bool]:
    """Return the vocabulary and `lower_case` with which `Tokenizer` gives the ids of a `tokenizers.Tokenizer`.

    Raises:
        UserError: it is not the WordPiece of BERT; `name` is that of its file or folder.
    """
    # transformers adds special tokens that the vocabulary lacks, of which the weights know nothing.
    ids = engine.get_vocab(with_added_tokens=False)
    added = [token.content for token in engine.get_added_tokens_decoder().values() if not token.special]
    if other := sorted(set(added) - ids.keys()):
        raise UserError(f"{name} adds tokens to the vocabulary, such as {other[0]!r}: give a tokenizer without them")
    words = tuple(sorted(ids, key=ids.__getitem__))
    if [ids[word] for word in words] != list(range(len(words))):
        raise UserError(f"{name} has {len(words)} words whose ids are not 0 to {len(words) - 1}: save it again")
    rules = _rules(engine)
    for lower_case in (True, False):
        if rules == _rules(_word_pieces({_UNKNOWN: 0}, lower_case)):
            return words, lower_case
    raise UserError(f"the tokenizer of {name} is not the WordPiece of BERT: give the weights of a BERT")


def require_case(found: bool, lower_case: bool, name: str) -> None:
    """Raise UserError if config.text.lower_case is not that of the tokenizer of a file or folder."""
    if found != lower_case:
        raise UserError(
            f"config.text.lower_case is {lower_case}, but the tokenizer of {name} is of "
            f"{'an uncased' if found else 'a cased'} model: set --config.text.lower_case={found}"
        )


def _rules(engine: Any) -> dict[str, Any]:
    """Return all that determines the pieces of a text besides the vocabulary."""
    state = json.loads(engine.to_str())
    normalizer = state["normalizer"] or {}
    if normalizer.get("strip_accents") is None:
        normalizer["strip_accents"] = normalizer.get("lowercase")
    return {**state["model"], "vocab": None, "normalizer": normalizer, "pre_tokenizer": state["pre_tokenizer"]}


def _read(path: epath.Path, lower_case: bool) -> tuple[str, ...]:
    advice = "give the path of a vocab.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        example = "https://huggingface.co/google-bert/bert-base-uncased/blob/main/vocab.txt"
        where = f"it is the vocab.txt beside the weights of a BERT model, for example {example}"
        raise VocabularyError(f"vocabulary {path} not found", where) from error
    except OSError as error:
        raise VocabularyError(f"cannot read the vocabulary {path}: {error.strerror}", advice) from error
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path} is not a vocabulary: it is not UTF-8 text", advice) from error
    if text.startswith("{"):
        from tokenizers import Tokenizer as Engine

        try:
            engine = Engine.from_str(text)
        except Exception as error:  # the library raises Exception itself
            what = f"{path} is not a tokenizer.json ({one_line(error)})"
            raise VocabularyError(what, "give a vocab.txt or tokenizer.json") from error
        words, found = words_and_case(engine, str(path))
        require_case(found, lower_case, str(path))
        return words
    return tuple(text.removesuffix("\n").split("\n"))  # not splitlines: ids count "\n" only


def _problem(vocabulary: tuple[str, ...]) -> str:
    """Return why a list of words is not a vocabulary of BERT, or ""."""
    missing = [word for word in (_PAD, _UNKNOWN, _START, _END) if word not in vocabulary]
    if missing:
        return f"is not a BERT vocabulary: it lacks {', '.join(missing)}"
    if vocabulary[0] != _PAD:
        return f"must begin with {_PAD}, whose id is 0, but it begins with {vocabulary[0]!r}"
    if broken := next((word for word in vocabulary if "\n" in word or "\r" in word), None):
        return f"has a line break in {broken!r}, which a vocab.txt cannot hold"
    if len(set(vocabulary)) != len(vocabulary):
        twice = next(word for index, word in enumerate(vocabulary) if word in vocabulary[:index])
        return f"has {twice!r} twice, but every entry of a vocabulary must be unique"
    return ""


def silence_tokenizer() -> None:
    """Silence this module's warnings; for commands that show `remarks` on every expression themselves."""
    _LOG.setLevel(logging.ERROR)


def remarks(tokenizer: Tokenizer, expression: str) -> list[str]:
    """Return remarks on an expression for its user: it is truncated, or has words that are not in the vocabulary."""
    found = []
    length, limit = tokenizer.length(expression), tokenizer.max_tokens
    if length > limit:
        found.append(
            f"{expression!r:.80} has {length} tokens and is truncated to the first {limit} (config.text.max_tokens)"
        )
    if tokenizer.has_unknown(expression):
        unknown = dict.fromkeys(f"{word!r:.80}" for word in expression.split() if tokenizer.has_unknown(word))
        found.append(f"not in the vocabulary, so ignored or misread: {first_of(list(unknown), ', ', 10)}")
    return found
