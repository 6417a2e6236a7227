import pytest

from trainables.data.contact_sheet import evenly_spaced


@pytest.mark.parametrize("available, count, expected", [(9, 3, [0, 4, 8]), (2, 5, [0, 1]), (5, 1, [0])])
def test_evenly_spaced_indices_include_both_ends(available, count, expected):
    assert evenly_spaced(available, count).tolist() == expected
