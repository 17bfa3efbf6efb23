"""The pruning curve to hover over: a page that opens offline."""

from pathlib import Path

from rnp_mlflow.report.curve import CURVES, Sweep, positions
from rnp_mlflow.report.style import INK, LINES, MARKS, Caption


def write_curve_page(file: Path, sweep: Sweep, caption: Caption) -> None:
    """Write the curves of `draw_curve`, and its operating points, as an interactive page."""
    import plotly.graph_objects as go

    rows, xs, figure = sweep.rows, positions(sweep.rows, sweep.axis), go.Figure()
    for name in CURVES:
        ys = [row[name] for row in rows]
        if any(y is not None for y in ys):
            look = LINES[name]
            figure.add_scatter(
                x=xs, y=ys, name=look.label, mode="lines+markers",
                line={"color": look.colour, "dash": {"-": "solid", "--": "dash", "-.": "dashdot"}[look.dash]},
                customdata=[row["pruned"] for row in rows],
                hovertemplate="%{y:.4f}, %{customdata} neurons pruned",
            )  # fmt: skip
    for level, point in enumerate(sweep.points):
        figure.add_vline(
            x=xs[0] if point.at is None else point.at, line_color=INK,
            line_dash={"-": "solid", "--": "dash", ":": "dot"}[MARKS[point.name].dash],
            annotation_text=f"{MARKS[point.name].label}: {point.pruned} neurons", annotation_yshift=-14 * level,
        )  # fmt: skip
    figure.update_layout(
        title=str(caption), template="plotly_white", hovermode="x unified",
        xaxis_title=f"pruning {sweep.axis}", yaxis_title="share of images", yaxis_range=[-0.02, 1.05],
    )  # fmt: skip
    figure.write_html(file, include_plotlyjs=True)
