"""The splits of a job as batches, with their words and with the groups that a split or a bootstrap keeps together."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from innerspace.jobs.inputs.data import Splits
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.scene_store import StoredAgents
from innerspace.motion.words import Labels, Vocabulary, label


@dataclass(frozen=True, eq=False)
class Parts:
    """Batches of every split; ``both`` is ``fit`` followed by ``test``, which probes split anew.

    ``both_groups`` numbers the groups that no split tears apart (scenes, or whole logs); bootstraps draw scenes.
    """

    splits: Splits
    train: Batch | StoredAgents
    validate: Batch
    both: Batch
    both_labels: Labels
    both_groups: Int[Tensor, "both"]
    fit: Batch
    fit_labels: Labels
    test: Batch
    test_labels: Labels

    @staticmethod
    def of(splits: Splits, framing: Framing, vocabulary: Vocabulary) -> "Parts":
        """Frame all scenes, and put what the targets do into words."""
        fit, test = frame(splits.fit, framing), frame(splits.test, framing)
        scenes = [*splits.fit, *splits.test]
        both = frame(scenes, framing)
        number = {name: i for i, name in enumerate(dict.fromkeys(scene.group for scene in scenes))}
        return Parts(
            splits=splits,
            train=splits.to_train_on(framing),
            validate=frame(splits.validate, framing),
            both=both,
            both_labels=label(both.target, both.dt, vocabulary),
            both_groups=torch.tensor([number[scene.group] for scene in scenes])[both.scene],
            fit=fit,
            fit_labels=label(fit.target, fit.dt, vocabulary),
            test=test,
            test_labels=label(test.target, test.dt, vocabulary),
        )

    def halves(self, seed: int = 0) -> tuple[Batch, Batch]:
        """The test split in two that share no group: one to choose on, one on which to report what was chosen.

        Raises:
            ValueError: if the test split has a single group.
        """
        names = [scene.group for scene in self.splits.test]
        distinct = sorted(set(names))
        if len(distinct) < 2:
            raise ValueError(
                f"the test split has one group only, {distinct[0]!r}; to choose and to report, two are needed"
            )
        order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
        first = {distinct[i] for i in order[: len(distinct) // 2]}
        chooses = torch.tensor([name in first for name in names])[self.test.scene]
        return self.test[chooses], self.test[~chooses]


def chunks(batch: Batch, size: int = 400) -> list[Batch]:
    """A batch in pieces that are quick to run and small to hold."""
    return [batch[slice(start, start + size)] for start in range(0, len(batch), size)]
