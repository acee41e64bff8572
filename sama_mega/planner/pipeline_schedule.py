"""When the stages of a pipeline are done: 1F1B with micro-batches that take different times."""

from __future__ import annotations

from collections.abc import Sequence

Seconds = Sequence[Sequence[float]]
"""By stage, by micro-batch."""


def simulate_1f1b(forward: Seconds, backward: Seconds) -> float:
    """Returns the time until the last stage rests.

    Stage p runs `min(stages - 1 - p, micro-batches)` forward passes ahead, then a forward and a backward pass by
    turns. A forward pass waits for the stage before it, a backward pass for the stage after it.

    Args:
        forward: Seconds of every forward pass.
        backward: Seconds of every backward pass.
    """
    num_stages, num_micro_batches = len(forward), len(forward[0])
    orders = [_order(min(num_stages - 1 - stage, num_micro_batches), num_micro_batches) for stage in range(num_stages)]
    done: list[dict[tuple[bool, int], float]] = [{} for _ in range(num_stages)]
    now, places = [0.0] * num_stages, [0] * num_stages
    left = 2 * num_stages * num_micro_batches
    while left:
        for stage, order in enumerate(orders):
            while places[stage] < len(order):
                is_forward, index = order[places[stage]]
                neighbour = stage - 1 if is_forward else stage + 1
                ready = 0.0
                if 0 <= neighbour < num_stages:
                    if (is_forward, index) not in done[neighbour]:
                        break
                    ready = done[neighbour][is_forward, index]
                seconds = (forward if is_forward else backward)[stage][index]
                now[stage] = done[stage][is_forward, index] = max(now[stage], ready) + seconds
                places[stage] += 1
                left -= 1
    return max(now)


def _order(warm_up: int, num_micro_batches: int) -> list[tuple[bool, int]]:
    """The passes of a stage: whether each is a forward pass, and of which micro-batch."""
    order = [(True, index) for index in range(warm_up)]
    for index in range(num_micro_batches - warm_up):
        order += [(True, warm_up + index), (False, index)]
    return order + [(False, index) for index in range(num_micro_batches - warm_up, num_micro_batches)]
