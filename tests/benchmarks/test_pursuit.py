"""The pursuit's benchmark compares what is the same."""

from benchmarks.pursuit import compare


def test_both_sides_find_the_same_codes():
    found = compare(12, 10, 8, 3)
    assert found["difference"] < 1e-9
    assert found["ratio"] > 0
