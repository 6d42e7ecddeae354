"""fedformer-prepare: make or read the data sets of the active scale, scale them, add calendar features.

Reads nothing (quick: the series is generated), or the public CSV files from a mirror or their homes. Writes
`data/fedformer/<scale>/<data>.safetensors`, laid out as `stages.fedformer.data.Series` says.
"""

from pathlib import Path

from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything
from stages.fedformer.data import make_series, read_benchmark, save_series, split_borders
from stages.fedformer.generated import ROWS, generate
from stages.fedformer.params import FedformerParams


def main() -> None:
    """Prepare every data set that the parameters name."""
    params = load_params(FedformerParams, "fedformer")
    seed_everything(0)
    with output_dir(Path("data/fedformer") / params.scale) as folder:
        for name in params.data:
            if name == "generated":
                series = make_series(*generate(), split_borders(ROWS, None), "h")
            else:
                series = read_benchmark(name)
            save_series(series, folder / f"{name}.safetensors")


if __name__ == "__main__":
    run(main)
