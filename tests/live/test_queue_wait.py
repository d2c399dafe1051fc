"""The queue wait of the real service is that of the simulation."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.queue_wait import MIN_TASKS, measure, quantiles_ms, simulated_waits

# The measured quantile may differ from the simulated one by this factor, because the pauses between two tasks on a busy
# machine are only known as a mean.
FACTOR = 2.0
CORRELATION = 0.8
SECONDS = 30


@pytest.mark.live
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("face_models")
def test_measured_queue_wait_is_that_of_the_simulation() -> None:
    run = measure(SECONDS)
    measured, simulated = quantiles_ms(run.times.waits_s), quantiles_ms(simulated_waits(run))
    print(f"utilization {run.utilization:.2f}\nmeasured  {measured}\nsimulated {simulated}")  # noqa: T201 - by -rP
    assert len(run.times.waits_s) >= MIN_TASKS
    assert (run.times.service_s > 0).all()
    ratios = {name: measured[name] / simulated[name] for name in ("mean", "p50", "p95", "p99")}
    assert all(1 / FACTOR <= ratio <= FACTOR for ratio in ratios.values()), ratios
    assert np.corrcoef(run.times.waits_s, simulated_waits(run))[0, 1] > CORRELATION
    # The check can fail: the waits are not those of a queue with half or twice the load.
    for slowdown in (0.5, 2.0):
        ratio = measured["mean"] / quantiles_ms(simulated_waits(run, slowdown=slowdown))["mean"]
        assert not 1 / FACTOR <= ratio <= FACTOR
