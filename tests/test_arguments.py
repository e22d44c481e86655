"""Arguments are checked by their annotations before anything else, and numpy's numbers are numbers."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from scvi_tahoe import FractionSplit, TahoeST, datasets, read_embedding_table
from scvi_tahoe._arguments import ArgumentError, _known, checked
from scvi_tahoe._matrices import trusted_matrix
from scvi_tahoe._memory import free_memory, verify_memory
from scvi_tahoe.nn import NetworkConfig
from scvi_tahoe.pretrained import embed_cells, read_pretrained

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@checked(n=(1, None), fraction=(0, 1))
def call(
    place: str | Path = ".",
    *,
    n: int | None = None,
    fraction: float = 0.1,
    names: Sequence[str] | Literal["all"] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    return locals()


TAKEN = {
    "numpy integer": ({"n": np.int64(3)}, {"n": 3}),
    "whole number as float": ({"n": 3.0}, {"n": 3}),
    "numpy float": ({"fraction": np.float32(0.5)}, {"fraction": 0.5}),
    "numpy bool": ({"progress": np.bool_(False)}, {"progress": False}),
    "integer for a number": ({"fraction": 1}, {"fraction": 1}),
    "path": ({"place": Path("here")}, {"place": Path("here")}),
    "tuple": ({"names": ("A", "B")}, {"names": ("A", "B")}),
    "numbers as labels": ({"names": [1, 2]}, {"names": [1, 2]}),
    "literal": ({"names": "all"}, {"names": "all"}),
    "mapping": ({"options": {"a": 1}}, {"options": {"a": 1}}),
}


@pytest.mark.parametrize("case", TAKEN)
def test_values_of_the_annotated_kind_are_taken(case):
    given, expected = TAKEN[case]
    found = call(**given)
    assert {name: found[name] for name in expected} == expected
    assert all(type(found[name]) is type(value) for name, value in expected.items())


REFUSED = [
    ({"n": "3"}, "n is '3'; allowed is a whole number or null"),
    ({"n": 2.5}, "n is 2.5; allowed is a whole number"),
    ({"n": True}, "n is True; allowed is a whole number"),
    ({"n": 0}, "n=0 must be 1 or more"),
    ({"fraction": 2}, "fraction=2 must be 0 to 1"),
    ({"fraction": 10**400}, "must be"),
    ({"n": 2**63}, "n is larger than any number that an array or a file holds"),
    ({"fraction": float("nan")}, "fraction is nan; a finite number is needed"),
    ({"names": "al"}, r"names is a list, or 'all' \(did you mean 'all'\?\); got the text 'al', write \['al'\]"),
    ({"names": {"A": 1}}, "names is {'A': 1}; allowed is a list of text"),
    ({"options": [1]}, r"options is \[1\]; allowed is a mapping or null"),
    ({"place": 5}, "place is 5; allowed is text or a path"),
    ({"place": object()}, "place is builtins.object; allowed is text or a path"),
    ({"progress": "yes"}, "progress is 'yes'; allowed is true or false"),
    ({"fractoin": 0.1}, r"call\(\) has no argument 'fractoin' \(did you mean 'fraction'\?\)"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_other_values_are_refused_with_what_is_allowed(given, message):
    with pytest.raises(ArgumentError, match=message):
        call(**given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TahoeST.load(5), "dir_path is 5; allowed is text or a path"),
        (lambda: TahoeST.setup_anndata("a.h5ad", "p", "c"), "adata is 'a.h5ad'; allowed is AnnData"),
        (lambda: read_embedding_table(5), "path is 5"),
        (lambda: datasets.simulate_screen(n_genes=0), "n_genes=0 must be 1 or more"),
        (lambda: FractionSplit(validation="a"), "validation is 'a'; allowed is a number"),
        (lambda: NetworkConfig(n_input="a", n_output=1, n_perturbation=1), "n_input is 'a'; allowed is a whole number"),
        (
            lambda: TahoeST.from_pretrained("nowhere", network={"layers": 3}),
            r"network has no option 'layers' \(did you mean 'n_layers'",
        ),
    ],
)
def test_public_calls_are_checked(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_size_that_does_not_fit_is_refused_with_the_largest_that_does():
    verify_memory("cells", 1, 8, "")
    assert 0 < free_memory()
    with pytest.raises(ValueError, match=r"cells take about .* GB .* left: at most [\d,]+ fit. Lower n"):
        verify_memory("cells", 10**15, 8, "Lower n.")


def csr(**changes):
    import scipy.sparse as sp

    matrix = sp.random(20, 10, density=0.4, format="csr", random_state=0, dtype=np.float32)
    for name, (place, value) in changes.items():
        getattr(matrix, name)[place] = value
    return matrix


@pytest.mark.parametrize(
    "changes",
    [{"indices": (0, -1)}, {"indices": (5, 10**6)}, {"indptr": (3, 10**6)}, {"indptr": (0, 1)}, {"indptr": (4, 0)}],
    ids=str,
)
@pytest.mark.parametrize("flags", [True, False])
def test_indices_out_of_range_are_refused(changes, flags):
    matrix = csr()
    if flags:
        assert matrix.has_canonical_format  # remembered from before the change
    for name, (place, value) in changes.items():
        getattr(matrix, name)[place] = value
    with pytest.raises(ValueError, match="X is damaged"):
        trusted_matrix(matrix, "X")


def test_entries_out_of_order_are_put_in_order_in_a_copy():
    matrix, first = csr(), csr().indptr[1]
    for values in (matrix.indices, matrix.data):
        values[:first] = values[:first][::-1].copy()
    before = matrix.indices.copy()
    found = trusted_matrix(matrix, "X")
    np.testing.assert_array_equal(found.toarray(), csr().toarray())
    np.testing.assert_array_equal(matrix.indices, before)
    whole = csr()
    assert trusted_matrix(whole, "X") is whole


@pytest.mark.parametrize(
    "matrix", [np.ones((2, 2), complex), np.array([["a", "b"]]), np.ones((2, 2), object), [1], np.ones(3)]
)
def test_what_is_no_matrix_of_real_numbers_is_refused(matrix):
    with pytest.raises(ValueError, match="X "):
        trusted_matrix(matrix, "X")


@pytest.mark.parametrize(
    ("call", "given"),
    [(embed_cells, {"scale": "log2"}), (read_pretrained, {"attention": "ful"})],
    ids=["scale", "attention"],
)
def test_names_of_types_that_another_folder_used_to_have_are_checked(call, given):
    import scvi_tahoe.pl  # noqa: F401

    with pytest.raises(ArgumentError, match=f"{next(iter(given))}=.* is unknown; allowed are"):
        call("nowhere", **given)


def test_the_output_of_a_prediction_is_checked_by_its_own_type():
    assert set(_known("Output")) == {typing.Literal["expression", "delta", "counts", "embedding", "prior"]}
