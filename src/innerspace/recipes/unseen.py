"""The speed vector of a words-in-motion run on traffic of another style, calibrated elsewhere; give the run's folder.

After ``innerspace demo``: ``innerspace run unseen --trained runs/demo``. Scenes of another data set are judged with
``--transfer --other.kind av2 --other.path FOLDER``.
"""

from innerspace.jobs.unseen import Unseen

job = Unseen()
