"""The faults of MUTATIONS.md can still be made; that they turn tests red is for `python tests/mutations.py` to say."""

import ast

import pytest

from mutations import ROOT, Mutation, mutations

HEADLINES = ("parity", "processes agree", "masking", "k-means")


@pytest.mark.parametrize("mutation", mutations(), ids=lambda mutation: mutation.claim)
def test_the_line_to_change_exists_once_and_so_does_the_test(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text()
    assert source.count(mutation.before) == 1 and mutation.after != mutation.before
    file, _, name = mutation.test.partition("::")
    functions = [node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert functions.count(name) == 1
    ast.parse(source.replace(mutation.before, mutation.after))


def test_every_headline_claim_has_a_fault() -> None:
    claims = [mutation.claim for mutation in mutations()]
    assert all(any(claim.startswith(headline) for claim in claims) for headline in HEADLINES)
