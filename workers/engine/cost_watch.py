"""Finds costs that were measured while other programs used the CPUs, from the inferences that run later. Pure."""

#: Inferences in one comparison.
INFERENCES = 64
#: Costs are too high if a quarter of the inferences take less than this part of the prediction. The costs fit inputs of
#: common lengths within about a third.
TOO_HIGH = 0.6


class CostWatch:
    """Compares the durations of inferences with their predictions."""

    def __init__(self) -> None:
        #: Durations as parts of their predictions.
        self._parts: list[float] = []

    def record_inference(self, predicted_ms: float, measured_ms: float) -> float | None:
        """Record an inference that ran while all streams were busy, as when costs are measured.

        Return the factor by which to multiply the costs if they are too high. That is the lower quartile, because other
        programs can only make an inference slower. Costs that are too low are corrected at the next start.
        """
        self._parts.append(measured_ms / predicted_ms)
        if len(self._parts) < INFERENCES:
            return None
        part = sorted(self._parts)[INFERENCES // 4]
        self._parts.clear()
        return part if part < TOO_HIGH else None
