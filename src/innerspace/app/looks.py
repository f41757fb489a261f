"""How gradio's controls look: quiet, in the colors of the palette, with the fonts that a reader's system has."""

from gradio.themes import Base

_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Liberation Sans", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")


def theme() -> Base:
    """The theme: no boxes around boxes, one accent, and nothing that is loaded from elsewhere."""
    both = {
        "body_background_fill": "var(--paper)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "background_fill_primary": "var(--paper)",
        "background_fill_secondary": "var(--wash)",
        "border_color_primary": "var(--rule)",
        "border_color_accent": "var(--hue-0)",
        "color_accent_soft": "var(--wash)",
        "block_background_fill": "transparent",
        "block_border_width": "0px",
        "block_shadow": "none",
        "block_label_text_color": "var(--soft)",
        "block_title_text_color": "var(--ink)",
        "block_info_text_color": "var(--soft)",
        "input_background_fill": "var(--paper)",
        "input_background_fill_focus": "var(--paper)",
        "input_border_color": "var(--lane)",
        "input_border_color_focus": "var(--hue-0)",
        "input_border_width": "1px",
        "input_placeholder_color": "var(--soft)",
        "input_shadow": "none",
        "input_shadow_focus": "none",
        "checkbox_background_color": "var(--paper)",
        "checkbox_background_color_selected": "var(--hue-0)",
        "checkbox_border_color": "var(--lane)",
        "checkbox_border_color_selected": "var(--hue-0)",
        "checkbox_label_background_fill": "var(--paper)",
        "checkbox_label_background_fill_hover": "var(--wash)",
        "checkbox_label_background_fill_selected": "var(--wash)",
        "checkbox_label_border_color": "var(--rule)",
        "checkbox_label_border_width": "1px",
        "checkbox_label_text_color": "var(--ink)",
        "checkbox_label_text_color_selected": "var(--ink)",
        "slider_color": "var(--hue-0)",
        "button_primary_background_fill": "var(--hue-0)",
        "button_primary_text_color": "var(--paper)",
        "button_secondary_background_fill": "var(--paper)",
        "button_secondary_background_fill_hover": "var(--wash)",
        "button_secondary_border_color": "var(--rule)",
        "button_secondary_text_color": "var(--ink)",
        "button_border_width": "1px",
        "accordion_text_color": "var(--ink)",
        "panel_background_fill": "transparent",
    }
    made = Base(font=list(_SANS), font_mono=list(_MONO), text_size="md", radius_size="sm", spacing_size="md")
    once = {"block_title_text_weight": "620", "shadow_drop": "none", "block_padding": "0"}
    return made.set(**once, **both, **{f"{name}_dark": value for name, value in both.items()})
