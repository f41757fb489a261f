"""Seconds to simulate 10,000 scenes."""

import time

from innerspace.motion.simulate import Simulation, simulate

for confounded in (False, True):
    start = time.perf_counter()
    simulated = simulate(Simulation(scenes=10_000, confounded=confounded))
    seconds = time.perf_counter() - start
    print(f"{len(simulated.scenes):,} scenes, confounded={confounded}: {seconds:.1f} s")
