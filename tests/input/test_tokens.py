"""Tokens: against the meaning of the expressions, and against transformers on a real vocabulary."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE, WordPiece
from transformers import BertTokenizer

from s2rm_jax.errors import UserError
from s2rm_jax.input.tokens import Tokenizer, remarks
from tests.input.refer_fixture import refer_mini

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "left", "##most", "red", "star", ",", "[", "]", "sep", "cafe")


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(WORDS, max_tokens=8)


def ids_of(*words: str, length: int = 8) -> list[int]:
    return [WORDS.index(word) for word in words] + [0] * (length - len(words))


@pytest.mark.parametrize(
    ("expression", "pieces"),
    [
        ("the red star", ["the", "red", "star"]),
        ("  The\tLEFTMOST star ", ["the", "left", "##most", "star"]),
        ("star,red", ["star", ",", "red"]),
        ("Café", ["cafe"]),
        ("the purple star", ["the", "[UNK]", "star"]),
        ("[SEP]", ["[", "sep", "]"]),  # typed by a person, it is no token that ends the expression
    ],
)
def test_expressions_become_pieces(tokenizer, expression, pieces):
    ids, mask = tokenizer.encode(expression)
    assert (ids.dtype, mask.dtype) == (np.int32, bool)
    assert ids.tolist() == ids_of("[CLS]", *pieces, "[SEP]")
    assert mask.tolist() == [index < len(pieces) + 2 for index in range(8)]
    assert tokenizer.words(ids) == ["[CLS]", *pieces, "[SEP]"]
    assert tokenizer.length(expression) == len(pieces) + 2


def test_an_expression_at_the_limit_is_whole_and_one_beyond_it_keeps_its_end(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        whole, _ = tokenizer.encode("the red star the red star")
        assert (whole.tolist(), tokenizer.truncated, caplog.records) == (
            ids_of("[CLS]", *["the", "red", "star"] * 2, "[SEP]"),
            0,
            [],
        )
        cut, mask = tokenizer.encode("the red star the red star left")
        tokenizer.encode("the " * 50)
    assert cut.tolist() == whole.tolist()
    assert mask.all()
    assert tokenizer.truncated == 2
    assert len(caplog.records) == 1
    assert "has 9 tokens and is truncated to 8" in caplog.text


@pytest.mark.parametrize("expression", ["", "  \t\n", "\u200b\x00", "\u0301", "\u1734"])
def test_an_expression_without_words_is_refused(tokenizer, expression):
    with pytest.raises(UserError, match="has no words"):
        tokenizer.encode(expression)


@pytest.mark.parametrize("expression", ["?", "🫨", "人", "\U00031350"])
def test_letters_that_are_not_in_the_vocabulary_are_words(tokenizer, expression):
    """Also those that are newer than the Unicode of Python."""
    ids, mask = tokenizer.encode(expression)
    assert mask.sum() == 3 and ids[1] == ids_of("[UNK]")[0]


def test_remarks_are_short_and_name_a_word_once(tokenizer):
    long, unknown = remarks(tokenizer, "zebra " * 100 + "yak")
    assert long.startswith("'zebra zebra") and len(long) < 160
    assert unknown == "not in the vocabulary, so ignored or misread: 'zebra', 'yak'"


def test_a_saved_vocabulary_gives_the_same_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "vocab.txt")
    again = Tokenizer(tmp_path / "vocab.txt", max_tokens=8)
    assert again.vocabulary == tokenizer.vocabulary == WORDS
    assert again.size == len(WORDS)
    assert again.encode("leftmost star")[0].tolist() == tokenizer.encode("leftmost star")[0].tolist()


def test_line_ends_of_windows_are_no_part_of_the_words(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(WORDS).encode())
    assert Tokenizer(tmp_path / "vocab.txt").vocabulary == WORDS


def test_a_cased_tokenizer_keeps_case_and_accents():
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "Red", "café", "cafe")
    cased, uncased = Tokenizer(words, 6, lower_case=False), Tokenizer(words, 6)
    for tokenizer, pieces in ((cased, ["Red", "café"]), (uncased, ["red", "cafe"])):
        assert tokenizer.words(tokenizer.encode("Red café")[0])[1:-1] == pieces
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.words(copy.encode("Red café")[0])[1:-1] == pieces


@pytest.mark.parametrize("lower_case", [True, False])
def test_a_tokenizer_json_is_a_vocabulary(tmp_path, lower_case):
    Tokenizer(WORDS, 8, lower_case).save_engine(tmp_path / "tokenizer.json")
    assert Tokenizer(tmp_path / "tokenizer.json", 8, lower_case).vocabulary == WORDS
    with pytest.raises(UserError, match=f"set --config.text.lower_case={lower_case}"):
        Tokenizer(tmp_path / "tokenizer.json", 8, not lower_case)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("{}", r"is not a tokenizer\.json \("),
        (Engine(BPE({"[PAD]": 0}, [])).to_str(), "is not the WordPiece of BERT"),
        (Engine(WordPiece({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")).to_str(), "is not the WordPiece of BERT"),
        (Engine(WordPiece({"[PAD]": 0, "[UNK]": 2}, unk_token="[UNK]")).to_str(), "2 words whose ids are not 0 to 1"),
    ],
    ids=["nothing", "another model", "another normalizer", "a hole"],
)
def test_a_tokenizer_json_of_another_kind_is_refused(tmp_path, engine, message):
    (tmp_path / "tokenizer.json").write_text(engine)
    with pytest.raises(UserError, match=message):
        Tokenizer(tmp_path / "tokenizer.json")


def test_a_worker_process_gets_the_same_tokenizer(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.vocabulary == WORDS
    assert copy.encode("leftmost star")[0].tolist() == tokenizer.encode("leftmost star")[0].tolist()


@pytest.mark.parametrize(
    ("words", "max_tokens", "message"),
    [
        (("the", "star"), 8, r"it lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
        ((*WORDS[:3], "the"), 8, r"it lacks \[SEP\]"),
        (("the", *WORDS[:4]), 8, r"must begin with \[PAD\].*begins with 'the'"),
        ((*WORDS, "star"), 8, "'star' twice"),
        ((*WORDS, "a\nb"), 8, r"line break in 'a\\nb'"),
        (WORDS, 2, "at least 3"),
    ],
)
def test_a_file_that_is_not_a_bert_vocabulary_is_refused(words, max_tokens, message):
    with pytest.raises(UserError, match=message):
        Tokenizer(words, max_tokens)


def test_a_vocabulary_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"vocabulary .*vocab\.txt not found; it is the vocab\.txt beside"):
        Tokenizer(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="cannot read the vocabulary"):
        Tokenizer(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match="not UTF-8 text"):
        Tokenizer(tmp_path / "weights.bin")


def test_a_saved_vocabulary_is_one_for_transformers(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "vocab.txt")
    reference = BertTokenizer.from_pretrained(tmp_path)
    for expression in ("The leftmost  RED star,", "café [ purple ]", "left " * 20):
        expected = reference(expression, truncation=True, max_length=8, padding="max_length")
        assert tokenizer.encode(expression)[0].tolist() == expected["input_ids"]


@pytest.fixture(scope="module")
def bert() -> Tokenizer:
    mini = refer_mini()
    path = mini.parent / "vocab/bert-base-uncased-vocab.txt" if mini else None
    if path is None or not path.is_file():
        pytest.skip("no vocabulary of a real BERT beside the sample of real data")
    return Tokenizer(path)


@pytest.fixture(scope="module")
def expressions() -> list[str]:
    mini = refer_mini()
    files = sorted((mini.parent / "expressions").glob("*.jsonl")) if mini else []
    if not files:
        pytest.skip("no real expressions beside the sample of real data")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row["sent"] for row in rows if "sent" in row]  # one of the files has another field


def test_a_real_vocabulary_cuts_known_expressions_as_published(bert):
    assert bert.size == 30_522
    ids, _ = bert.encode("The man in red.")
    assert ids[:7].tolist() == [101, 1996, 2158, 1999, 2417, 1012, 102]
    assert bert.words(bert.encode("skiier")[0]) == ["[CLS]", "ski", "##ier", "[SEP]"]


def test_real_expressions_get_the_tokens_of_transformers(bert, expressions, tmp_path):
    bert.save(tmp_path / "vocab.txt")
    reference = BertTokenizer.from_pretrained(tmp_path)
    odd = ["Ünïcödé 漢字 – “quotes”", "o'clock", "e-mail: a@b.c", "🙂", "a" * 120, "1/2 3.5% $4", "don't\u00a0stop"]
    for expression in [*odd, *expressions]:
        expected = reference(expression, truncation=True, max_length=20, padding="max_length")
        ids, mask = bert.encode(expression)
        assert ids.tolist() == expected["input_ids"], expression
        assert mask.tolist() == [bool(value) for value in expected["attention_mask"]], expression


def test_real_expressions_fit_and_can_be_read_back(bert, expressions):
    """RefCOCOg has the longest expressions of the datasets: the default limit cuts few of them."""
    assert len(expressions) > 10_000
    lengths = np.array([bert.length(expression) for expression in expressions])
    assert 8.4 < lengths.mean() - 2 < 10.4  # 8.4 words, and their punctuation and pieces
    assert (lengths > bert.max_tokens).mean() < 0.04
    for expression, length in zip(expressions, lengths, strict=True):
        words = bert.words(bert.encode(expression)[0])
        assert "[UNK]" not in words
        if length <= bert.max_tokens:
            text = "".join(word.removeprefix("##") for word in words[1:-1])
            assert text == "".join(expression.lower().split())
