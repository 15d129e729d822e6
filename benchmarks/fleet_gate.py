"""Error rates of the gates that let a release through, by the code that lets it through.

The table of the design: 100 canaries, true gains of devices normal with sd 4 points around what stands in the first
column, answers differ on 6 % + |gain| of the samples, 10 of 100 canaries lie at the worst extreme, or none. The gate
looks when judges have 20, 40, 80, 160 and 320 pairs, and what it decides first holds.

    python benchmarks/fleet_gate.py            # all of it, about a minute of one core
    python benchmarks/fleet_gate.py --waves 200
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np

from edge.channel.messages import Pairs
from edge.coordinator.rollout import gates
from edge.coordinator.rollout.gates import CLIP_ACCURACY, LOOKS, agreement_rule, pass_rule, stop_rule
from edge.coordinator.rollout.plan import Model, n_liars

MARGIN, SD = 0.02, 0.04
FIRST = 10  # canaries of the first wave
# The design's numbers, in % by 40 / 320 pairs: with 10 of 100 liars pass, stop; with none pass, stop.
DESIGN = {
    -5: ((0, 0), (96.7, 100), (0, 0), (100, 100)),
    -2: ((0.3, 0.4), (2, 4), (0, 0), (47, 74)),
    0: ((0.1, 0.8), (5, 5), (12, 46), (0.4, 0.4)),
    2: ((27, 88), (0, 0), (96, 100), (0, 0)),
    5: ((99.9, 100), (0, 0), (100, 100), (0, 0)),
}
Gains = Callable[[np.random.Generator, float, int], np.ndarray]


def normal(rng: np.random.Generator, mean: float, n: int) -> np.ndarray:
    return rng.normal(mean, SD, n)


def of_sd(sd: float) -> Gains:
    return lambda rng, mean, n: rng.normal(mean, sd, n)


def heavy(rng: np.random.Generator, mean: float, n: int) -> np.ndarray:
    """Student's t with 3 degrees of freedom, of the same sd."""
    found: np.ndarray = mean + SD * rng.standard_t(3, n) / np.sqrt(3.0)
    return found


def skewed(rng: np.random.Generator, mean: float, n: int) -> np.ndarray:
    """Many gain a little, few lose much."""
    return mean + SD * (1.0 - rng.exponential(1.0, n))


def canaries(
    rng: np.random.Generator, mean: float, n: int, liars: int, gains: Gains = normal, run: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of pairs ``(looks, n)`` where only the new, and only the old version was right; liars at the extreme.

    Args:
        rng: Chance.
        mean: True gain of the middle.
        n: Canaries.
        liars: How many of them say what does most harm: better where it is worse, and the other way round.
        gains: True gains of devices.
        run: Like pairs that come one after another.
    """
    gain = np.clip(gains(rng, mean, n), -0.47, 0.47)
    differ = 0.06 + np.abs(gain)
    chances = np.stack([(differ + gain) / 2, (differ - gain) / 2, 1 - differ], axis=1)
    steps = np.diff([0, *LOOKS])
    found = np.array([rng.multinomial(step // run, chances) * run for step in steps]).cumsum(axis=0)
    new, old = found[:, :, 0].astype(float), found[:, :, 1].astype(float)
    says_better = mean < 0
    pairs = np.array(LOOKS, float)[:, None]
    new[:, :liars] = pairs if says_better else 0
    old[:, :liars] = 0 if says_better else pairs
    return new, old


def wave(new: np.ndarray, old: np.ndarray, liars: int) -> tuple[str, int]:
    """What the gate does with one wave, and at which look."""
    for at, pairs in enumerate(LOOKS):
        x = (new[at] - old[at]) / pairs
        if stop_rule(x, pairs, liars, CLIP_ACCURACY):
            return "stop", at
        errors = np.sqrt(np.maximum((new[at] + old[at]) / pairs - x**2, 0) / pairs)
        if pass_rule(x, errors, new[at] + old[at] == 0, liars, MARGIN, CLIP_ACCURACY)[0]:
            return "pass", at
    return "hold", len(LOOKS) - 1


def rates(
    rng: np.random.Generator, mean: float, n: int, share: float, waves: int, *, lie: bool = True, **how: Any
) -> dict[str, list[float]]:
    """In %, by 40 and by 320 pairs; `share` may lie, and does or does not."""
    liars, counts = n_liars(n, share), {"pass": [0, 0], "stop": [0, 0]}
    for _ in range(waves):
        decision, at = wave(*canaries(rng, mean, n, liars if lie else 0, **how), liars)
        if decision != "hold":
            counts[decision][0] += at <= LOOKS.index(40)
            counts[decision][1] += 1
    return {decision: [100 * count / waves for count in found] for decision, found in counts.items()}


def table(rng: np.random.Generator, waves: int) -> None:
    print(f"100 canaries, {waves} waves a row, ours (design), % by 40 / 320 pairs")
    print(f"{'gain':>5} | {'10 lie: pass':>24} {'stop':>24} | {'none lies: pass':>24} {'stop':>24}")
    for points, design in DESIGN.items():
        cells = []
        for share, lie in ((0.10, True), (0.10, False)):
            found = rates(rng, points / 100, 100, share, waves, lie=lie)
            cells += [found["pass"], found["stop"]]
        texts = [f"{a:.1f} / {b:.1f} ({x:g} / {y:g})" for (a, b), (x, y) in zip(cells, design, strict=True)]
        print(f"{points:>+5} | {texts[0]:>24} {texts[1]:>24} | {texts[2]:>24} {texts[3]:>24}")


def at_the_edge(rng: np.random.Generator, waves: int) -> None:
    print(
        f"\n% of waves that pass although the middle lost 2 points, {waves} waves a row (design: at most 1; skewed 3.9)"
    )
    rows: dict[str, dict[str, Any]] = {
        "sd 2": {"gains": of_sd(0.02)}, "sd 8": {"gains": of_sd(0.08)}, "heavy tails": {"gains": heavy},
        "runs of 5": {"run": 5}, "runs of 10": {"run": 10}, "skewed": {"gains": skewed},
    }  # fmt: skip
    for label, how in rows.items():
        print(f"  {label:<12} {rates(rng, -0.02, 100, 0.10, waves, **how)['pass'][1]:.2f}")
    for n in (30, 400):
        print(f"  {n} canaries{'':<2} {rates(rng, -0.02, n, 0.10, waves)['pass'][1]:.2f}")


def without_labels(rng: np.random.Generator, waves: int) -> None:
    print(f"\nno labels: % of {waves} waves of 100 canaries that pass at 320 pairs, by share of answers that differ")
    for share, lying in ((0.005, 0.10), (0.01, 0.10), (0.01, 0.0), (0.02, 0.10), (0.02, 0.0), (0.9, 0.10)):
        liars, passed = n_liars(100, lying), 0
        for _ in range(waves):
            differ = rng.binomial(320, share, 100) / 320
            differ[:liars] = 0.0 if share >= MARGIN else 1.0
            passed += agreement_rule(differ, liars, MARGIN)
        print(f"  {share:>5.1%} differ, {liars:>2} lie: {100 * passed / waves:.1f}")


def rollouts(rng: np.random.Generator, count: int) -> None:
    """Waves of 10, 100, 500 and 1,000 of 2,000 devices, 200 of which lie: the screen, then the gate three times."""
    print(f"\n{count} rollouts to 2,000 devices, 200 lie (design: -5: 99.7 % stopped, 0.3 % held; -2: 0.5 % left the")
    print("canaries, none reached all; +5: 97.5 % reached all). Also of a first wave of 10: % that the screen holds")
    for points in (-5, -2, 0, 2, 5):
        ends = {"held by the screen": 0, "stopped": 0, "held": 0, "left the canaries": 0, "reached all": 0}
        for _ in range(count):
            lying = rng.permutation(2000)[:1000] < 200
            order = np.argsort(~lying, kind="stable")  # `canaries` has the liars first
            new, old = (np.empty((len(LOOKS), 1000)) for _ in range(2))
            new[:, order], old[:, order] = canaries(rng, points / 100, 1000, int(lying.sum()))
            sums = {str(i): Pairs(labelled=LOOKS[3], only_new=new[3, i], only_old=old[3, i]) for i in range(FIRST)}
            if gates.screen(sums, Model()).decision is not gates.Decision.PASS:
                ends["held by the screen"] += 1
                continue
            for size in (100, 500, 1000):  # a gate looks at all canaries so far
                decision, _ = wave(new[:, :size], old[:, :size], n_liars(size, 0.10))
                if decision != "pass":
                    ends["stopped" if decision == "stop" else "held"] += 1
                    break
                ends["left the canaries"] += size == 100
            else:
                ends["reached all"] += 1
        print(f"  {points:>+3}: " + ", ".join(f"{text} {100 * n / count:.1f}" for text, n in ends.items()))


def by_gain(what: str, sizes: Iterable[int], trials: int, once: Callable[[float, int], tuple[bool, bool]]) -> None:
    """A table, by the number of devices and their true gain, of how often each of two things happened, in percent.

    Args:
        what: The devices are.
        sizes: Numbers of them: a row each.
        trials: Of each cell.
        once: Of a true gain (a share of answers) and a number of devices, whether each of the two happened.
    """
    gains = (-40, -10, -5, -2, 0, 2, 5)
    print(f"  {what} {' '.join(f'{each:>+12}' for each in gains)}")
    for n in sizes:
        found = [np.mean([once(points / 100, n) for _ in range(trials)], axis=0) for points in gains]
        cells = [f"{100 * one:.0f} / {100 * other:.0f}" for one, other in found]
        print(f"  {n:>{len(what)}} {' '.join(f'{each:>12}' for each in cells)}")


def small_screens(rng: np.random.Generator, waves: int) -> None:
    """First waves of two or three canaries, all of them honest, with few pairs each."""

    def is_held(gain: float, n: int) -> tuple[bool, bool]:
        new, old = canaries(rng, gain, n, 0)

        def at(look: int) -> bool:
            sums = {str(k): Pairs(labelled=LOOKS[look], only_new=new[look, k], only_old=old[look, k]) for k in range(n)}
            return gates.screen(sums, Model()).decision is not gates.Decision.PASS

        return at(LOOKS.index(20)), at(LOOKS.index(80))

    print(f"\n% of {waves} first waves of few canaries that the screen holds, by true gain in points (20 / 80 pairs)")
    by_gain("canaries", (2, 3, 4, 10), waves, is_held)


def beforehand(rng: np.random.Generator, heads: int) -> None:
    """Judges with 64 labels each try heads before a rollout begins; one of them tells the opposite, or none does."""

    def is_stopped(mean: float, n: int) -> tuple[bool, bool]:
        gain = np.clip(normal(rng, mean, n), -0.47, 0.47)
        differ = 0.06 + np.abs(gain)
        chances = np.stack([(differ + gain) / 2, (differ - gain) / 2, 1 - differ], axis=1)
        found = rng.multinomial(64, chances).astype(float)

        def by(said: np.ndarray) -> bool:
            sums = {str(k): Pairs(labelled=64, only_new=row[0], only_old=row[1]) for k, row in enumerate(said)}
            return gates.beforehand(sums, Model()).decision is gates.Decision.STOP

        return by(np.vstack([[64, 0, 0] if mean < 0 else [0, 64, 0], found[1:]])), by(found)

    print(f"\n% of {heads} heads that judges stop before a rollout begins, by true gain in points (one lies / none)")
    by_gain("judges", (3, 6, 12, 30), heads, is_stopped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waves", type=int, default=2000, help="simulated waves of each row")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng, start = np.random.default_rng(given.seed), time.monotonic()
    table(rng, given.waves)
    at_the_edge(rng, given.waves)
    without_labels(rng, given.waves)
    rollouts(rng, given.waves // 2)
    beforehand(np.random.default_rng(given.seed), given.waves // 2)
    small_screens(np.random.default_rng(given.seed), given.waves // 2)
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
