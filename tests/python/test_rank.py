"""Which of several equal processes a process is."""

import pytest

import dragon

ASKED = [(dragon.rank, "DRAGON_RANK"), (dragon.local_rank, "DRAGON_LOCAL_RANK"), (dragon.size, "DRAGON_GROUP_SIZE")]


@pytest.mark.parametrize(("ask", "variable"), ASKED)
def test_it_is_what_the_runtime_says(monkeypatch, ask, variable):
    monkeypatch.setenv(variable, "17")
    assert ask() == 17


@pytest.mark.parametrize(("ask", "variable"), ASKED)
def test_a_process_without_one_is_told_who_has_one(monkeypatch, ask, variable):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(dragon.DragonError, match=f"{variable} is not set.*srun --dragon=spmd"):
        ask()


@pytest.mark.parametrize(("ask", "variable"), ASKED)
def test_what_is_no_number_is_named(monkeypatch, ask, variable):
    monkeypatch.setenv(variable, "many")
    with pytest.raises(dragon.DragonError, match=f"{variable}=many is not a number"):
        ask()
