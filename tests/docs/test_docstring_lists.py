import pytest

pytest.importorskip("griffe", reason="the API pages are made by mkdocstrings: pip install -e '.[docs]'")

import griffe

from docs.docstring_lists import as_lists


def test_items_and_their_continuations_become_a_list():
    docstring = "The state.\n\nstep    int32 scalar\nparams  the parameters,\n        float32\n\nMore text."
    expected = "The state.\n\n- `step`: int32 scalar\n- `params`: the parameters,\n  float32\n\nMore text."
    assert as_lists(docstring) == expected


@pytest.mark.parametrize(
    "docstring",
    [
        "One line.",
        "Text of\ntwo lines  with spaces.",
        "Load it:\n\n    a  = 1\n    b  = 2\n",
        "Args:\n    a: one\n    bc:  two\n",
        "name  meaning\nbut then text",
    ],
)
def test_other_text_stays(docstring):
    assert as_lists(docstring) == docstring


def test_docstrings_of_the_package_are_converted():
    package = griffe.load("s2rm_jax", extensions=griffe.load_extensions("docs.docstring_lists"), submodules=True)
    docstring = package["evaluation.metrics.ExpressionScore"].docstring.value
    assert "- `id`: the expression, unique within its split" in docstring
