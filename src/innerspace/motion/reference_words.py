"""The published labels of "Words in Motion", bit for bit, faults included: needed only to reproduce published numbers.

Known faults, each kept on purpose:

1. The joint id has colliding strides: 144 combinations share 33 ids.
2. The direction sums yaw rates without the time step: at 10 Hz the sum is ten times the heading change, so that
   "straight" means within 1.5° and a left turn of 19° is called right. A sum of exactly 180° or 345° has no class; the
   published code stops there with a KeyError, here it is undefined.
3. Whatever moves backwards counts as stationary in direction, and as accelerating at constant speed.
4. Invalid steps count as steps at speed zero.
5. Acceleration is relative to the first speed, without time base or dead band: parked agents always change speed.
6. Speed classes are the same for vehicles and pedestrians, so that speed and type are confounded.

Class ids are those of ``words``. Arithmetic is done in the dtype that is given; the published arrays are float32.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor


def reference_labels(
    speed: Float[Tensor, "n steps"], yaw_rate: Float[Tensor, "n steps"], kind: Int[Tensor, "n"]
) -> dict[str, Int[Tensor, "n"]]:
    """The published class ids from raw arrays: signed speed (m/s) and yaw rate (rad/s), zero where not valid.

    The published yaw rates were computed after headings had been interpolated over gaps. An agent without a type
    (kind −1) has no class at all.
    """
    mean, first = speed.mean(-1), speed[:, 0]
    angle = torch.remainder(torch.rad2deg(yaw_rate.sum(-1)) + 360, 360)
    straight = (angle <= 15) | (angle > 345)
    direction = torch.full_like(kind, -1)
    direction = direction.masked_fill(straight, 1)
    direction = direction.masked_fill((angle > 180) & (angle < 345), 2)
    direction = direction.masked_fill((angle > 15) & (angle < 180), 3)
    direction = direction.masked_fill(mean <= 0.25, 0)

    faster, slower = mean > 1.15 * first, mean < 0.85 * first
    acceleration = torch.ones_like(kind).masked_fill(slower, 0).masked_fill(faster, 2)
    pace = torch.zeros_like(kind).masked_fill(mean > 25 / 3.6, 1).masked_fill(mean >= 50 / 3.6, 2)
    classes = {
        "speed": pace.masked_fill(mean < 0, 3),
        "acceleration": acceleration,
        "direction": direction,
        "agent": kind,
    }
    return {name: ids.masked_fill(kind < 0, -1) for name, ids in classes.items()}


def reference_ids(classes: Mapping[str, Int[Tensor, "n"]]) -> Int[Tensor, "n"]:
    """The published joint id, 3·agent + 4·direction + 4·speed + acceleration: 33 values for 144 combinations.

    It is −1 where any class is undefined. Use ``Vocabulary.encode`` for ids that can be decoded.
    """
    agent, direction, speed = classes["agent"], classes["direction"], classes["speed"]
    ids = 3 * agent + 4 * direction + 4 * speed + classes["acceleration"]
    known = torch.stack([entry >= 0 for entry in classes.values()]).all(0)
    return ids.where(known, -1)
