from made_up_rows import made_up_row
from matplotlib.figure import Figure

from shallowvit_bench.plot import draw_latencies


def test_draw_latencies_tells_every_line_of_a_sweep_on_two_devices_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "legend", lambda figure, **_: drawn.append(figure))
    rows = tuple(made_up_row("ours", machine=name, batch=batch) for name in ("left", "right") for batch in (1, 2, 4))
    draw_latencies(rows, tmp_path / "plot.png")
    axes = drawn[0].axes[0]
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    assert lines[0].get_label() == "ours on left, tensorrt, batch 1, 700 runs"
    assert len({line.get_label() for line in lines}) == len({(line.get_color(), line.get_linestyle()) for line in lines}) == 6
    assert axes.get_xlabel() == "latency of a batch, ms"
