"""Scaling of a step over many chips, predicted from its FLOPs, its collectives and the chip's published rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from s2rm_jax.measure.collectives import Collective
from s2rm_jax.parallel.chips import Chip

ASSUMED_UTILISATION = 0.4  # of the matrix units; an assumption, nothing was measured
RING_LINKS = 2  # a ring through all chips sends to both sides; it fits into every slice, a torus or not


@dataclass(frozen=True)
class Scaling:
    """A prediction for one step, in seconds of a chip.

    compute     FLOPs of a chip / (matrix rate x assumed utilisation)
    ring        to send what must be sent over one ring in both directions, the slower way
    all_links   the same over all links of the chip at once, the best that can be
    """

    compute: float
    ring: float
    all_links: float

    def efficiency(self, sending: float, overlapped: bool) -> float:
        """Returns the time of a step without sending, divided by that with it.

        Args:
            sending: `ring` or `all_links`.
            overlapped: whether all is sent while something else is computed, or nothing is.
        """
        return self.compute / (max(self.compute, sending) if overlapped else self.compute + sending)


def predict_scaling(
    chip: Chip, flops: float, collectives: Sequence[Collective], utilisation: float = ASSUMED_UTILISATION
) -> Scaling:
    """Predicts a step from the FLOPs of one chip and its exchanges; latencies are left out."""
    sent = sum(one.sent_bytes for one in collectives)
    return Scaling(
        compute=flops / (chip.matrix_rate * utilisation),
        ring=sent / (RING_LINKS * chip.link_rate),
        all_links=sent / (chip.links * chip.link_rate),
    )
