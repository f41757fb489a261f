"""What the tab on language shows and gives away: both continuations, the next token's changes, code for the same."""

from html import escape
from pathlib import Path

from innerspace.app.exports import links
from innerspace.app.language import TEXTS, Language, LanguageView, Told
from innerspace.app.strips import Picture, changes, strip
from innerspace.app.studied import code_imports, code_of
from innerspace.decompose.subspaces import Subspaces
from innerspace.report.numerals import number

KEY = "language"
"""The tab's name in the address."""


def draw(language: Language, view: LanguageView) -> str:
    """Both continuations side by side, and what becomes of the next token.

    Raises:
        ValueError: for what there is not, or a prompt that cannot be read.
    """
    told = language.tell(view)
    changed = described(told)
    unmoved = '<p class="quiet">Nothing is written yet: move the slider, or clamp.</p>'
    rows = told.moved
    table = changes(rows, "The next token after the prompt", ("unsteered", changed)) if rows else unmoved
    panes = (
        ("Unsteered", strip(told.strip)),
        (changed.capitalize(), strip(told.steered)),
    )
    shown = "".join(f"<section><h3>{title}</h3>{body}</section>" for title, body in panes)
    below = ", orange below zero" if min((*told.strip.values, *told.steered.values)) < 0 else ""
    key = f'<p class="quiet">Shaded: {escape(told.unit)}, as the unsteered network reads the text at {told.site}; '
    key += f"at most {number(told.strip.largest)}{below}. The text goes on with the likeliest tokens.</p>"
    return f'<div class="panes">{shown}</div>{key}{table}{links(view, KEY)}{view.mark(KEY)}'


def described(told: Told) -> str:
    """How the right one differs, in a word or two."""
    return f"{'clamped' if told.view.way == 'clamp' else 'steered'} by {told.view.amount:+g}".replace("-", "−").replace(
        "clamped by +", "clamped at "
    )


def picture(language: Language, view: LanguageView) -> str:
    """Both continuations and the changes as an SVG file."""
    told, page = language.tell(view), Picture()
    page.heading(headline(view, told))
    page.note(f"Shaded: {told.unit}, read at {told.site}.")
    page.heading("Unsteered")
    page.strip(told.strip)
    page.heading(described(told).capitalize())
    page.strip(told.steered)
    if told.moved:
        page.heading(f"The next token after the prompt, unsteered → {described(told)}")
        page.changes(told.moved)
    return page.svg()


def headline(view: LanguageView, told: Told) -> str:
    """What a view shows, in a line."""
    what = f"from “{view.away}” to “{view.toward}”" if view.what == TEXTS else f"{view.what}, {view.part}"
    return f"{what} at {told.site}, {described(told)}"


_CODE = '''"""{headline}."""

import json
from pathlib import Path

import torch

{imports}
from innerspace.decompose.saved import load
from innerspace.interventions import At, Read, Steer, Write, hold
from innerspace.language.text import Text
from innerspace.network.site import Where
from innerspace.steering_modes import Clamp

{loading}

ids = {ids}
site, where = {site!r}, Where("valid", skip={skip})
{along}
edits = {edits}


@torch.no_grad()
def continued(edits):
    """The likeliest tokens that follow, and the probabilities of the first."""
    batch = Text(torch.tensor([ids]))
    with model.under(edits, batch=batch):
        out = model.module.generate(
            input_ids=batch.ids,
            attention_mask=torch.ones_like(batch.ids),
            max_new_tokens={new},
            do_sample=False,
            pad_token_id={padding},
            return_dict_in_generate=True,
            output_logits=True,
        )
    return out.sequences[0].tolist(), out.logits[0][0].float().softmax(-1)


(clean, before), (steered, after) = continued({{}}), continued(edits)
change = after - before
rows = [
    {{"token": tokenizer.convert_ids_to_tokens(i), "before": float(before[i]), "after": float(after[i])}}
    for i in change.abs().topk(8).indices.tolist()
]
for name, found in (("unsteered", clean), ("steered", steered)):
    print(f"{{name}}: {{tokenizer.decode(found)}}")
Path("language.json").write_text(json.dumps({{"unsteered": clean, "steered": steered, "changes": rows}}, indent=2))
'''


def code(language: Language, view: LanguageView) -> str:
    """A program that writes both continuations and the largest changes to ``language.json``."""
    told, studied = language.tell(view), language.studied
    tokenizer, names, along = studied.tokenizer, dict[str, Path](), ""
    if view.what == TEXTS:
        along = _FROM_TEXTS.format(toward=language.ids(view.toward), away=language.ids(view.away))
    else:
        saved = next(one for one in (*studied.dictionaries, *studied.partitions) if one.name == view.what)
        names["what"] = saved.file
    return _CODE.format(
        headline=headline(view, told).replace("\\", "").replace('"', ""),
        imports=code_imports(studied.run),
        loading=code_of(studied.run, names),
        ids=language.ids(view.prompt),
        site=told.site,
        skip=studied.where.skip,
        along=along,
        edits=_edit(language, view),
        new=view.new,
        padding=next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0),
    )


_FROM_TEXTS = '''

@torch.no_grad()
def last(ids):
    """The state of the last token."""
    return model.run(Text(torch.tensor([ids])), {{site: Read()}}, stop=True).hidden[site][0, -1]


along = last({toward}) - last({away})'''


def _edit(language: Language, view: LanguageView) -> str:
    """The write as Python."""
    part, amount = view.part, repr(view.amount)
    if language.edit(view) is None:
        return "{}"
    if view.what != TEXTS and isinstance(language.studied.decomposition(view.what), Subspaces):
        rule = f"lambda z, visit: {1 + view.amount!r} * z"
        if view.way == "clamp":
            rule = f"lambda z, visit: z * ({amount} / z.norm(dim=-1, keepdim=True).clamp_min(1e-12))"
        return f"{{site: At(where, Write(what, {part}, {rule}))}}"
    along = "along" if view.what == TEXTS else f"what.directions[{part}].detach()"
    if view.way == "steer":
        return f"{{site: At(where, Steer({along}, {amount}))}}"
    if view.what != TEXTS and language.site(view) == language.studied.site_of(view.what):
        return f"{{site: At(where, hold(what, {{{part}: {amount}}}))}}"
    return f"{{site: At(where, Clamp({along}, low={amount}, high={amount}))}}"
