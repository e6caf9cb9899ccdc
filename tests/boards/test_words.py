import pandas as pd
import pytest

from squeeze.boards.words import number, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12, "12 B"), (999, "999 B"), (389_304, "389 kB"), (1_234, "1.23 kB"), (9_995, "10.0 kB"), (99_950, "100 kB"),
        (999_600, "1.00 MB"), (112e6, "112 MB"), (2.5e9, "2.50 GB"), (float("nan"), "—"), (pd.NA, "—"),
    ],
)  # fmt: skip
def test_sizes_have_three_digits_and_the_unit_that_suits(count, text):
    assert size(count) == text


def test_no_number_is_a_dash():
    assert (number(float("nan"), ".2f"), number(None, ".2f"), number(0.0, ".2f")) == ("—", "—", "0.00")
