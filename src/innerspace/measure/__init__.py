"""Judge decompositions and interventions: fidelity, probing, collapse, steering."""
