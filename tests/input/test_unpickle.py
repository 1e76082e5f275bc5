"""Files of referents: Python 2's, today's, damaged ones and hostile ones."""

from __future__ import annotations

import copyreg
import json
import os
import pickle
from fractions import Fraction
from pathlib import Path

import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.input.refer_annotations import load_refs

REFS = [{"ref_id": 0, "split": "val", "sentences": [{"sent_id": 1, "raw": "Café left", "tokens": ["café", "left"]}]}]


def write(tmp_path: Path, data: bytes, name: str = "refs(unc).p") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_gives_the_same_referents(tmp_path, protocol):
    assert load_refs(write(tmp_path, pickle.dumps(REFS, protocol))) == REFS


def test_json_gives_the_same_referents(tmp_path):
    assert load_refs(write(tmp_path, json.dumps(REFS).encode(), "refs(unc).json")) == REFS


# Python 2's pickle.dumps([{'ref_id': 7L, 'raw': '...'}], protocol) with a byte string, which Python 3 cannot write.
PYTHON_2_TEXT = b"(lp0\n(dp1\nS'ref_id'\np2\nL7L\nsS'raw'\np3\nS'%s'\np4\nsa."
PYTHON_2_BINARY = b"\x80\x02]q\x00}q\x01(U\x06ref_idq\x02\x8a\x01\x07U\x03rawq\x03U%c%sq\x04ua."


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b"left man", "left man"), ("caf\u00e9".encode(), "caf\u00e9"), ("caf\u00e9".encode("latin1"), "caf\u00e9")],
    ids=["ascii", "utf-8", "latin-1"],
)
def test_python_2_byte_strings_become_text(tmp_path, raw, text):
    expected = [{"ref_id": 7, "raw": text}]
    assert load_refs(write(tmp_path, PYTHON_2_BINARY % (len(raw), raw))) == expected
    escaped = b"".join(b"\\x%02x" % byte for byte in raw)
    assert load_refs(write(tmp_path, PYTHON_2_TEXT % escaped)) == expected


class Hostile:
    """Creates a file when it is unpickled the ordinary way."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_a_function_is_refused_and_nothing_runs(tmp_path, protocol):
    target = tmp_path / "proof"
    data = pickle.dumps([*REFS, Hostile(target)], protocol)
    with pytest.raises(UserError, match=r"system.*was not loaded"):
        load_refs(write(tmp_path, data))
    assert not target.exists()
    pickle.loads(data)
    assert target.exists(), "the payload was a dud, so the refusal above proved nothing"


class ById(pickle.Pickler):
    def persistent_id(self, obj):
        return "elsewhere" if obj == "outside" else None


def test_whatever_else_reaches_out_of_the_file_is_refused(tmp_path):
    by_id = tmp_path / "by_id.p"
    with by_id.open("wb") as file:
        ById(file, protocol=2).dump([{"ref_id": "outside"}])
    copyreg.add_extension("fractions", "Fraction", 0xF0)
    try:
        by_extension_code = pickle.dumps([{"ref_id": Fraction(1, 2)}], protocol=2)
        assert b"fractions" not in by_extension_code
        with pytest.raises(UserError, match=r"fractions\.Fraction"):
            load_refs(write(tmp_path, by_extension_code))
    finally:
        copyreg.remove_extension("fractions", "Fraction", 0xF0)
    with pytest.raises(UserError, match="elsewhere"):
        load_refs(by_id)
    with pytest.raises(UserError, match=r"posix\.system|nt\.system"):  # the opcode INST: call while naming
        load_refs(write(tmp_path, b"(S'true'\ni%b\nsystem\n." % os.name.encode()))


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (pickle.dumps(REFS, 2)[:-20], "refs(unc).p", "damaged or not a pickle"),
        (b"", "refs(unc).p", "damaged or not a pickle"),
        (b"<!DOCTYPE html><title>404</title>", "refs(unc).p", "damaged or not a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "refs(unc).p", "damaged or not a pickle"),
        (b'[{"ref_id": 0', "refs(unc).json", "damaged or not JSON"),
        (b"\xff\xfe\x00", "refs(unc).json", "damaged or not JSON"),
        (pickle.dumps({"ref_id": 0}), "refs(unc).p", "does not hold a list of referents"),
        (b"[1, 2]", "refs(unc).json", "does not hold a list of referents"),
    ],
)
def test_a_file_that_is_not_a_list_of_referents_is_named(tmp_path, data, name, message):
    path = write(tmp_path, data, name)
    with pytest.raises(UserError, match=message) as raised:
        load_refs(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*refs\(unc\)\.p: No such file"):
        load_refs(tmp_path / "refs(unc).p")
