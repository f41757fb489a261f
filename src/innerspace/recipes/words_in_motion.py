"""Words in motion on embedded simulated traffic: probe, steer and judge a small RedMotion, in minutes, offline."""

from innerspace.jobs.control import WordsInMotion

job = WordsInMotion()
