"""Automatic interpretation: what coordinates are on for, in words that are tested on what nobody explained them by.

Three latents of a dictionary at a site of a language model, in a notebook::

    from innerspace.explain.interpret import interpret
    from innerspace.explain.reading import TextReader

    found = interpret(model, batches, dictionary, "resid.2", [3, 17, 42], TextReader(tokenizer))
    for one in found.explained:
        print(one.latent, one.explanation.text, one.detection, one.fuzzing)

A forecaster's latents are explained in motion words: ``SceneReader()`` in the place of ``TextReader(tokenizer)``. Who
explains and who judges can be replaced: ``explainer=`` and ``judge=`` take ``RuleExplainer`` and ``RuleJudge``
(offline, the default), what ``Endpoint(…).open()`` or ``LocalModel(…).open()`` gives, or a class of your own with one
method.

The examples that are shown, and those that are judged, have no document and no scene in common. They are drawn from
all parts of a latent's activations, and as many from where it is off. *Detection* asks in which contexts it is on,
*fuzzing* whether it is on at the marked position (Paulo et al., "Automatically Interpreting Millions of Features in
Large Language Models", 2024, arXiv 2410.13928). Beside every score stand those of a stranger's explanation, of one that
was made from random examples, and of the most frequent token or word alone.
"""
