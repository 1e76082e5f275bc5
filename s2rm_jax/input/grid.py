"""Which pixels of a mask are wanted, so that no others are made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True, eq=False)
class Grid:
    """Row i and column j of what is wanted are `rows[i]` and `columns[j]` of a mask of `size` (height, width).

    Rows ascend; columns ascend or descend; each may come more than once.
    """

    size: tuple[int, int]
    rows: Int[np.ndarray, " h"]
    columns: Int[np.ndarray, " w"]

    @classmethod
    def whole(cls, height: int, width: int) -> Grid:
        """Returns the grid of all pixels."""
        return cls((height, width), np.arange(height), np.arange(width))

    def resized(self, size: tuple[int, int]) -> Grid:
        """Returns the grid of (height, width) pixels, each the one of this grid that is nearest to its centre.

        So do the data pipelines of LAVT, CARIS and CRIS. Nearest keeps a mask's area right on average and gives thin
        parts the same chance as thick ones.
        """
        rows, columns = (
            seen[(2 * np.arange(new) + 1) * len(seen) // (2 * new)]
            for seen, new in zip((self.rows, self.columns), size, strict=True)
        )
        return Grid(self.size, rows, columns)

    def of(self, mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "h w"]:
        """Returns the wanted pixels of a mask."""
        return mask[self.rows][:, self.columns]  # one axis at a time is faster than both together

    def of_runs(self, runs: Int[np.ndarray, " runs"]) -> Bool[np.ndarray, "h w"]:
        """Returns the wanted pixels of the mask of which these are the lengths of runs, the background's first.

        Runs go down column after column. It is their ends that are moved to where they are among the wanted pixels.
        """
        column, row = np.divmod(np.cumsum(runs), self.size[0])
        ends = self._wanted_before_column[column]
        ends += self._rows_before[row] * self._is_wanted[column]
        mask = fill_runs(np.diff(ends, prepend=0), len(self.rows), int(self._is_wanted.sum()))
        return mask if self._place is None else mask.T[self._place].T

    @cached_property
    def _is_wanted(self) -> Bool[np.ndarray, " columns"]:
        wanted = np.zeros(self.size[1] + 1, bool)
        wanted[self.columns] = True
        return wanted

    @cached_property
    def _wanted_before_column(self) -> Int[np.ndarray, " columns"]:
        """How many wanted pixels lie in the columns before each column, those counted once that come several times."""
        return (np.cumsum(self._is_wanted) - self._is_wanted) * len(self.rows)

    @cached_property
    def _rows_before(self) -> Int[np.ndarray, " height"]:
        """How many wanted rows lie above each row."""
        return np.searchsorted(self.rows, np.arange(self.size[0]))

    @cached_property
    def _place(self) -> Int[np.ndarray, " w"] | None:
        """Where each column is among the wanted ones in ascending order; None where they are in that order."""
        place = self._wanted_before_column[self.columns] // len(self.rows)
        return None if np.array_equal(place, np.arange(len(place))) else place


def fill_runs(runs: Int[np.ndarray, " runs"], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Lays runs, the background's first, column after column."""
    is_foreground = np.arange(len(runs)) % 2 == 1
    return np.repeat(is_foreground, runs).reshape(width, height).T
