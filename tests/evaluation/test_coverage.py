"""Coverage and power by simulation: what the intervals, p-values and detectable effects of a comparison promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from east_ray.evaluation.comparison import Difference, difference_of
from east_ray.evaluation.statistics import accuracy_interval, holm

NUM_QUESTIONS = 5_000  # MATH's test set
RUNS = 2_000


def simulated(
    rng: np.random.Generator, seeds: int, accuracy: float, gain: float, lose: float, effects_S: np.ndarray | float = 0.0
) -> tuple:
    """Answers (seeds, questions) of an arm with that accuracy and of its baseline.

    The arm alone answers a share `gain` of the questions and the baseline alone `lose`. On half of the questions every
    seed of the arm turns out alike, on the other half each seed is drawn by itself. `effects_S`: what each seed gains more.
    """
    wrong = 1 - accuracy + gain - lose
    baseline_Q = rng.random(NUM_QUESTIONS) >= wrong
    draw_S_Q = rng.random((seeds, NUM_QUESTIONS))
    alike_Q = rng.random(NUM_QUESTIONS) < 0.5
    draw_S_Q[:, alike_Q] = draw_S_Q[0, alike_Q]
    loses_S, gains_S = (lose - effects_S / 2) / (1 - wrong), (gain + effects_S / 2) / max(wrong, 1e-12)
    return baseline_Q ^ (draw_S_Q < np.where(baseline_Q, loses_S, gains_S)), np.tile(baseline_Q, (seeds, 1))


def split(accuracy: float, disagreement: float) -> tuple[float, float]:
    """(gain, lose): no difference where the accuracy leaves room for it, else the smallest one."""
    lose = min(disagreement / 2, 1 - accuracy)
    return disagreement - lose, lose


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("accuracy", [0.5, 0.97, 1.0])
@pytest.mark.parametrize("disagreement", [0.02, 0.05, 0.2])
def test_intervals_cover_the_truth_in_95_of_100_runs_and_no_difference_is_found_in_at_most_5(
    seeds: int, accuracy: float, disagreement: float
) -> None:
    gain, lose = split(accuracy, disagreement)
    rng = np.random.default_rng([seeds, int(100 * accuracy), int(100 * disagreement)])
    covered, accuracy_covered, found = 0, 0, 0
    for _ in range(RUNS):
        arm, baseline = simulated(rng, seeds, accuracy, gain, lose)
        d = difference_of(arm, baseline, "baseline", 0.95)
        low, high = accuracy_interval(arm)
        covered += d.low <= gain - lose <= d.high
        accuracy_covered += low <= accuracy <= high
        found += d.p_value < 0.05
        assert (d.p_value < 0.05) == (d.low > 0 or d.high < 0)
    assert 0.935 <= covered / RUNS <= 0.97
    assert accuracy_covered == RUNS if accuracy == 1 else 0.935 <= accuracy_covered / RUNS <= 0.97
    assert gain != lose or found / RUNS <= 0.055


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.003, 0.01, 0.03])
@pytest.mark.parametrize("disagreement", [0.05, 0.2])
def test_intervals_cover_the_mean_of_all_seeds_when_their_true_effects_differ(
    seeds: int, spread: float, disagreement: float
) -> None:
    rng = np.random.default_rng([seeds, int(1000 * spread), int(100 * disagreement)])
    covered = 0
    for _ in range(RUNS):
        effects_S = np.clip(spread * rng.standard_normal((seeds, 1)), -disagreement, disagreement)
        d = difference_of(*simulated(rng, seeds, 0.5, disagreement / 2, disagreement / 2, effects_S), "baseline", 0.95)
        covered += d.low <= 0 <= d.high
    # By theory 93.7 to 98.2%, 92.2 to 97.3% and 94.1 to 96.6% over all spreads and correlations of 2, 3 and 5 seeds. No
    # interval made of what two seeds show keeps within 93.5 and 97%: the best one, fitted to the answer, covers 93.0 to 97.9%.
    least, most = {2: (0.93, 0.985), 3: (0.915, 0.975), 5: (0.935, 0.975)}[seeds]
    assert least <= covered / RUNS <= most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "comparisons", "disagreement"),
    # Two seeds and more comparisons would need differences beyond the disagreement.
    [*itertools.product((1, 3), (1, 4, 16), (0.05, 0.2)), (2, 1, 0.05), (2, 1, 0.2), (2, 4, 0.2)],
)
def test_a_detectable_effect_is_found_in_75_to_85_of_100_runs_under_the_correction_of_the_verdict(
    seeds: int, comparisons: int, disagreement: float
) -> None:
    rng = np.random.default_rng([seeds, comparisons, int(100 * disagreement)])

    def compared(effect: float, corrected_for: int = 1) -> Difference:
        shares = (disagreement + effect) / 2, (disagreement - effect) / 2
        return difference_of(*simulated(rng, seeds, 0.5, *shares), "baseline", 0.95, corrected_for)

    nulls = [compared(0.0, comparisons) for _ in range(400)]
    effect = float(np.mean([d.detectable for d in nulls]))
    others = rng.choice([d.p_value for d in nulls], (RUNS // 2, comparisons - 1))
    found = sum(holm([compared(effect).p_value, *p_values])[0] < 0.05 for p_values in others)
    assert 0.75 <= found / (RUNS // 2) <= 0.85
