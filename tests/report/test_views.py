"""How numbers and tables are shown."""

import numpy as np
import pytest

from miri_steps.report.views import Part, TableView, show


@pytest.mark.parametrize(
    "value, text",
    [
        *((None, "–"), (np.nan, "–"), (np.ma.masked, "–"), ("word", "word"), (np.int64(12345), "12345")),
        *((0.012345, "0.0123"), (-0.5, "\N{MINUS SIGN}0.5"), (3330.05, "3330"), (np.float32(0.1), "0.1")),
    ],
)
def test_a_number_is_shown_with_what_counts(value, text):
    assert show(value) == text


def test_cells_look_like_what_they_say():
    kinds = [TableView.kind(cell) for cell in ("✓ COMPLETE", "✗ FAILED", "○ SKIPPED", "word " * 20)]

    assert kinds == ["done", "failed", "skipped", "long"]


def test_parts_of_a_page_have_ids_of_their_own():
    part = Part("Super-background")
    part.place("m2")

    assert part.id == "m2-super-background"
