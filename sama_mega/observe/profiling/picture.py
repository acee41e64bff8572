"""A step as one bar, cut into its groups, as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sama_mega.observe.profiling.kernel_groups import Group
from sama_mega.observe.profiling.kernel_table import GroupTime, StepTable

_WIDTH, _MARGIN, _BAR, _ROW, _COLUMNS = 860, 20, 64, 24, 2
_SMALLEST_SHARE = 0.005
_COLOURS = {
    Group.GEMM: "#1f6f54",
    Group.ATTENTION_FORWARD: "#2f5f9e",
    Group.ATTENTION_BACKWARD: "#6d96cc",
    Group.NORMS: "#d08b2c",
    Group.ROPE: "#e5b567",
    Group.POINTWISE: "#8fb996",
    Group.LOSS: "#9c5fa3",
    Group.NOISE: "#c79bcc",
    Group.OPTIMIZER: "#7a5a44",
    Group.AVERAGE: "#a98a74",
    Group.GRADIENTS: "#c4ad9d",
    Group.ENCODERS: "#3f8f93",
    Group.COPIES: "#8a8f3c",
    Group.DATA_WAIT: "#5b6770",
    Group.HOST: "#a9b4bd",
    Group.IDLE: "#dfe4e8",
    Group.OTHER: "#c7c7c7",
}
_MESSAGES = ("#b33b3b", "#cf6a6a", "#e29a9a", "#efc4c4")


def draw_step(title: str, table: StepTable) -> str:
    """Returns an SVG picture; what takes less than half a percent is drawn as one piece at the end."""
    shown = [group for group in table.groups if group.share >= _SMALLEST_SHARE]
    rest = sum(group.share for group in table.groups) - sum(group.share for group in shown)
    pieces = [(group.group, group.share, colour) for group, colour in zip(shown, _colours(shown), strict=True)]
    if rest > 0:
        pieces.append(("all else", rest, "#f0f0f0"))
    num_rows = -(-len(pieces) // _COLUMNS)
    legend_top = 52 + _BAR + 18
    height = legend_top + _ROW * num_rows + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 2 * _MARGIN}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    left = float(_MARGIN)
    for index, (name, share, colour) in enumerate(pieces):
        length = _WIDTH * share
        column, row = divmod(index, num_rows)
        x, y = _MARGIN + column * (_WIDTH // _COLUMNS), legend_top + row * _ROW
        label = f"{name}: {share * table.step_milliseconds:.2f} ms, {100 * share:.1f} %"
        lines += [
            f'<rect x="{left:.1f}" y="44" width="{length:.1f}" height="{_BAR}" fill="{colour}">'
            f"<title>{escape(label)}</title></rect>",
            f'<rect x="{x}" y="{y}" width="14" height="14" fill="{colour}"/>',
            f'<text x="{x + 22}" y="{y + 12}">{escape(label)}</text>',
        ]
        left += length
    return "\n".join([*lines, "</svg>"]) + "\n"


def _colours(groups: Sequence[GroupTime]) -> list[str]:
    messages = [group.group for group in groups if group.group.startswith(Group.COMMUNICATION)]
    reds = {name: _MESSAGES[index % len(_MESSAGES)] for index, name in enumerate(messages)}
    return [reds.get(group.group) or _COLOURS[group.group] for group in groups]
