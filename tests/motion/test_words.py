import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from innerspace.motion.framing import Tracks
from innerspace.motion.reference_words import reference_ids, reference_labels
from innerspace.motion.sentences import describe, parse
from innerspace.motion.words import UNDEFINED, Labels, Vocabulary, label, sensitivity

DT = 0.1
PUBLISHED = Vocabulary(compat="reference")


def tracks(speed: Tensor, heading: Tensor | None = None, valid: Tensor | None = None, kind: int = 0) -> Tracks:
    """Agents that move with a signed speed (m/s) along their heading (rad); what is not valid is zero."""
    heading = torch.zeros_like(speed) if heading is None else heading
    valid = torch.ones_like(speed, dtype=torch.bool) if valid is None else valid
    velocity = speed[..., None] * torch.stack((heading.cos(), heading.sin()), -1)
    return Tracks(
        position=(velocity * DT).cumsum(-2) * valid[..., None],
        heading=torch.remainder(heading + torch.pi, 2 * torch.pi).sub(torch.pi) * valid,
        velocity=velocity * valid[..., None],
        valid=valid,
        kind=torch.full(speed.shape[:1], kind),
        size=torch.ones(len(speed), 3, dtype=speed.dtype),
    )


def ramp(first: float, last: float, steps: int = 11) -> Tensor:
    return torch.linspace(first, last, steps, dtype=torch.float64)[None]


def turn(degrees: float, steps: int, start: float = 0.0) -> Tracks:
    return tracks(ramp(10, 10, steps), ramp(start, start + math.radians(degrees), steps))


def only(labels: Labels) -> dict[str, str]:
    (words,) = labels.words()
    return words


def all_classes() -> dict[str, Tensor]:
    features = Vocabulary().features
    grid = torch.cartesian_prod(*(torch.arange(len(feature.classes)) for feature in features))
    return {feature.name: grid[:, i] for i, feature in enumerate(features)}


def test_ids_are_bijective() -> None:
    ids = Vocabulary().encode(all_classes())
    assert ids.unique().tolist() == list(range(144))
    decoded = Vocabulary().decode(ids)
    assert all(torch.equal(decoded[name], entry) for name, entry in all_classes().items())


def test_ids_keep_the_undefined_apart() -> None:
    classes = all_classes() | {"direction": torch.full((144,), UNDEFINED)}
    assert (Vocabulary().encode(classes) == UNDEFINED).all()
    assert all((entry == UNDEFINED).all() for entry in Vocabulary().decode(torch.tensor([UNDEFINED])).values())


def test_ids_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="missing: agent"):
        Vocabulary().encode({name: entry for name, entry in all_classes().items() if name != "agent"})
    with pytest.raises(ValueError, match=r"acceleration are in 0…2.*got 3"):
        Vocabulary().encode(all_classes() | {"acceleration": torch.full((144,), 3)})
    with pytest.raises(ValueError, match="got 144"):
        Vocabulary().decode(torch.tensor([0, 144]))


def test_published_ids_collide() -> None:
    counts = Counter(reference_ids(all_classes()).tolist())
    assert (len(counts), max(counts), max(counts.values())) == (33, 32, 10)
    assert sum(count == 1 for count in counts.values()) == 8


@pytest.mark.parametrize("steps", [11, 50])
@pytest.mark.parametrize(("degrees", "published"), [(17, "left"), (19, "right"), (36, "straight"), (38, "left")])
def test_published_direction_aliases_and_ours_does_not(degrees: float, published: str, steps: int) -> None:
    assert only(label(turn(degrees, steps), DT, PUBLISHED))["direction"] == published
    assert only(label(turn(degrees, steps), DT, Vocabulary()))["direction"] == "left"


@pytest.mark.parametrize(("degrees", "expected"), [(14, "straight"), (-14, "straight"), (-16, "right"), (200, "left")])
@pytest.mark.parametrize("start", [0.0, 3.1, -3.1])
def test_direction_is_the_wrapped_net_turn(degrees: float, expected: str, start: float) -> None:
    labels = label(turn(degrees, 50, start), DT, Vocabulary())
    assert only(labels)["direction"] == expected
    assert labels.targets["direction"].item() == pytest.approx(math.radians(degrees))


@pytest.mark.parametrize(
    ("speed", "speed_word", "change"),
    [
        (torch.cat((torch.zeros(1, 1), torch.full((1, 10), 15.0)), 1), "moderate", "accelerating"),
        (torch.cat((torch.zeros(1, 6), torch.full((1, 5), 15.0)), 1), "low", "accelerating"),
        (ramp(10, 12.9), "moderate", "constant"),
        (ramp(10, 13.1), "moderate", "accelerating"),
        (ramp(-2, -2), "backwards", "accelerating"),
    ],
)
def test_published_labels(speed: Tensor, speed_word: str, change: str) -> None:
    rates = torch.zeros_like(speed)
    ids = reference_labels(speed, rates, torch.tensor([0]))
    words = only(Labels(ids, {}, PUBLISHED))
    assert (words["speed"], words["acceleration"]) == (speed_word, change)
    assert words["direction"] == ("stationary" if speed.mean() < 0 else "straight")
    assert words == only(label(tracks(speed), DT, PUBLISHED))


def test_published_rules_name_no_direction_for_half_a_turn() -> None:
    rates = torch.zeros(2, 11, dtype=torch.float64)
    rates[:, 1] = torch.deg2rad(torch.tensor([180.0, 345.0], dtype=torch.float64))
    ids = reference_labels(torch.full_like(rates, 5), rates, torch.tensor([0, 0]))
    assert ids["direction"].tolist() == [UNDEFINED, UNDEFINED]
    assert reference_ids(ids).tolist() == [UNDEFINED, UNDEFINED]
    untyped = reference_labels(torch.full_like(rates, 5), rates, torch.tensor([-1, -1]))
    assert all((entry == UNDEFINED).all() for entry in untyped.values())


def test_published_rules_have_fixed_thresholds() -> None:
    with pytest.raises(ValueError, match="leave out turn"):
        Vocabulary(turn=20, compat="reference")


@pytest.mark.parametrize(
    ("speed", "expected"),
    [(6.9, "low"), (7.0, "moderate"), (13.8, "moderate"), (13.9, "high"), (-2.0, "backwards"), (-0.2, "low")],
)
def test_speed(speed: float, expected: str) -> None:
    labels = label(tracks(ramp(speed, speed)), DT, Vocabulary())
    assert only(labels)["speed"] == expected
    assert labels.targets["speed"].item() == pytest.approx(speed)
    assert (only(labels)["direction"] == "stationary") == (abs(speed) <= 0.25)
    assert only(labels)["acceleration"] == "constant"


@pytest.mark.parametrize(
    ("first", "last", "target", "expected"),
    [
        (10, 12.9, 2.9, "accelerating"),
        (10, 10.4, 0.4, "constant"),
        (5, 4, -1, "decelerating"),
        (-1, -2, 1, "accelerating"),
        (-2, -1, -1, "decelerating"),
    ],
)
def test_acceleration_is_a_slope_along_the_motion(first: float, last: float, target: float, expected: str) -> None:
    labels = label(tracks(ramp(first, last)), DT, Vocabulary())
    assert only(labels)["acceleration"] == expected
    assert labels.targets["acceleration"].item() == pytest.approx(target)


def test_acceleration_does_not_depend_on_the_window() -> None:
    for steps in (11, 50):
        labels = label(tracks(ramp(10, 10 + 0.8 * (steps - 1) * DT, steps)), DT, Vocabulary())
        assert labels.targets["acceleration"].item() == pytest.approx(0.8)


def test_invalid_steps_never_count() -> None:
    valid = torch.ones(1, 20, dtype=torch.bool)
    valid[0, [0, 1, 2, 7, 8, 13, 19]] = False
    whole = tracks(ramp(14, 18, 20), ramp(3.0, 3.6, 20))
    holed = tracks(ramp(14, 18, 20), ramp(3.0, 3.6, 20), valid)
    labels = label(holed, DT, Vocabulary())
    assert only(labels) == only(label(whole, DT, Vocabulary()))
    seen = valid[0].nonzero()[:, 0]
    assert labels.targets["speed"].item() == pytest.approx(ramp(14, 18, 20)[0, seen].mean().item())
    assert labels.targets["acceleration"].item() == pytest.approx(4 / (19 * DT))
    assert labels.targets["direction"].item() == pytest.approx(0.6 / 19 * (seen[-1] - seen[0]).item())
    rubbish = Tracks(
        *(
            field.where(valid.reshape(1, 20, *(1,) * (field.ndim - 2)), 1e3)
            for field in (holed.position, holed.heading, holed.velocity)
        ),
        valid,
        holed.kind,
        holed.size,
    )
    assert only(label(rubbish, DT, Vocabulary())) == only(labels)


@pytest.mark.parametrize(("steps", "known"), [(0, False), (1, False), (4, False), (5, True)])
def test_what_is_seen_too_briefly_is_undefined(steps: int, known: bool) -> None:
    labels = label(tracks(ramp(8, 8), valid=torch.arange(11)[None] < steps, kind=2), DT, Vocabulary())
    assert only(labels)["agent"] == "cyclist"
    assert (len(only(labels)) == 4) == known
    assert all(bool(target.isfinite().all()) == known for target in labels.targets.values())
    assert labels.counts()["speed"] == {"low": 0, "moderate": known, "high": 0, "backwards": 0, "undefined": not known}


def test_noise_around_a_standing_agent_is_no_motion() -> None:
    parked = tracks(torch.randn(64, 11) * 0.1)
    assert label(parked, DT, Vocabulary()).counts()["direction"]["stationary"] == 64
    assert label(parked, DT, Vocabulary()).counts()["acceleration"]["constant"] > 48
    assert label(parked, DT, PUBLISHED).counts()["acceleration"]["constant"] < 16
    jumping = Tracks(100 * torch.randn(64, 11, 2), *(getattr(parked, name) for name in list(vars(parked))[1:]))
    assert label(jumping, DT, Vocabulary()).counts()["direction"]["stationary"] == 64


def test_walking_sideways_is_not_standing() -> None:
    walker = tracks(ramp(1.5, 1.5))
    across = math.pi / 2 + 0.01 * (-1.0) ** torch.arange(10, dtype=torch.float64)
    walker.heading[:, 1:] = across
    labels = label(walker, DT, Vocabulary())
    assert abs(labels.targets["speed"].item()) < 0.25
    assert only(labels)["direction"] != "stationary"


def test_sensitivity_counts_the_labels_at_a_threshold() -> None:
    some = tracks(torch.cat([ramp(speed, speed) for speed in (1.0, 7.2, 7.4, 13.0, 20.0)]))
    shares = sensitivity(some, DT, Vocabulary(), change=0.1)
    assert shares["slow_speed"] == (0, 0.4)
    assert shares["fast_speed"] == (0.2, 0)
    assert shares["turn"] == shares["dead_band"] == shares["stationary"] == (0, 0)
    with pytest.raises(ValueError, match="no track"):
        sensitivity(tracks(torch.zeros(0, 11)), DT, Vocabulary())


def test_label_refuses_what_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="dt"):
        label(tracks(ramp(1, 1)), 0.0, Vocabulary())
    one = tracks(ramp(1, 1))
    nested = Tracks(*(getattr(one, name)[None] for name in Tracks.__dataclass_fields__))
    with pytest.raises(ValueError, match="3 axes"):
        label(nested, DT, Vocabulary())


def test_vocabulary_is_a_value_that_refuses_contradictions() -> None:
    vocabulary = Vocabulary(turn=10, minimum_steps=3)
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    with pytest.raises(ValueError, match="stationary < slow_speed"):
        Vocabulary(slow_speed=20)
    with pytest.raises(ValueError, match="minimum_steps is 1"):
        Vocabulary(minimum_steps=1)
    for feature in vocabulary.features:
        assert {feature.negative, feature.positive} <= set(feature.classes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a vehicle moving left at high speed, decelerating", ("high", "decelerating", "left", "vehicle")),
        ("a pedestrian standing still", ("low", "constant", "stationary", "pedestrian")),
        ("a cyclist moving backwards, accelerating", ("backwards", "accelerating", "straight", "cyclist")),
        ("a vehicle moving backwards to the right", ("backwards", "constant", "right", "vehicle")),
    ],
)
def test_sentences(text: str, words: tuple[str, ...]) -> None:
    named = dict(zip(("speed", "acceleration", "direction", "agent"), words, strict=True))
    assert describe(named) == text
    assert parse(text) == named


def test_every_sentence_leads_back_to_its_words() -> None:
    combinations = Labels(all_classes(), {}, Vocabulary()).words()
    possible = [w for w in combinations if w["direction"] != "stationary" or w["speed"] in ("low", "backwards")]
    vague = [
        {key: word for key, word in w.items() if key != "direction"} for w in possible if w["speed"] != "backwards"
    ]
    briefly = [{"agent": agent} for agent in ("vehicle", "pedestrian", "cyclist")]
    assert all(parse(describe(words)) == words for words in itertools.chain(possible, vague, briefly))
    assert len({describe(words) for words in possible}) == len(possible) == 126


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a truck standing still", "unknown agent 'truck'; possible are vehicle, pedestrian, cyclist"),
        ("a vehicle moving up at high speed", "unknown motion 'moving up at high speed'; possible are standing still"),
        ("a vehicle standing still, waiting", "unknown ending ', waiting'; possible are ', decelerating'"),
        ("vehicle", "starts with 'a' and an agent"),
        ("a vehicle, accelerating", "unknown motion ''"),
    ],
)
def test_unknown_words_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_descriptions_refuse_contradictions() -> None:
    still = {"agent": "vehicle", "speed": "high", "acceleration": "constant", "direction": "stationary"}
    with pytest.raises(ValueError, match="contradict"):
        describe(still)
    with pytest.raises(ValueError, match="unknown speed 'fast'; possible are low"):
        describe(still | {"speed": "fast"})
    with pytest.raises(ValueError, match="unknown feature 'color'"):
        describe({"agent": "vehicle", "color": "red"})
    with pytest.raises(ValueError, match="needs speed and acceleration"):
        describe({"agent": "vehicle", "speed": "low"})
