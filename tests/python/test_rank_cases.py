"""What three ranks do together: the cases of the modules named here, each module in one set of processes."""

import importlib

import pytest
from rank_cases import run_cases

RANKS = 3
MODULES = ["rank_failures", "rank_decisions", "rank_states"]
CASES = [(module, case.__name__) for module in MODULES for case in importlib.import_module(module).CASES]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    known = {}

    def outcome_of(module, case):
        if module not in known:
            known[module] = run_cases(RANKS, module, tmp_path_factory.mktemp(module))
        return known[module][case]

    return outcome_of


@pytest.mark.parametrize(("module", "case"), CASES)
def test_all_ranks(outcome, module, case):
    wrong = [f"rank {rank}: {text}" for rank, text in enumerate(outcome(module, case)) if text]
    assert not wrong, "\n".join(wrong)
