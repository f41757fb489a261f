"""The workbench: a live page on what a run left, to steer, browse and compare."""
