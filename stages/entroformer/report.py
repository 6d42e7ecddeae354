"""entroformer: the comparison tables, the claims' verdicts and the figures.

Reads `runs/entroformer/<scale>/evaluate/` and, to time decoding, the codecs of the first seed in `train/`. Writes
`reports/entroformer/<scale>/`: `results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and `timings.json`:
seconds of decoding, kept from the last run on the same kind of machine.
"""

from pathlib import Path

import pandas as pd

from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.files import sha256
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run
from stages.entroformer.anchors import ANCHORS
from stages.entroformer.cells import Job, load_model
from stages.entroformer.claims import check_claims, curve, rate
from stages.entroformer.complexity import LARGE, SMALL, Decoding, measure
from stages.entroformer.figures import draw_figures
from stages.entroformer.method.metrics import bd_rate
from stages.entroformer.params import EntroformerParams

LABELS = {
    "cnn-hyper": "CNN: hyperprior only",
    "cnn-context": "CNN: context only (5x5 masked convolution)",
    "cnn-serial": "CNN: context + hyperprior",
    "cnn-two-pass": "CNN: checkerboard + hyperprior",
    "ent-hyper": "Entroformer: hyperprior only",
    "ent-context": "Entroformer: context only (serial)",
    "ent-serial": "**Entroformer: context + hyperprior (serial)**",
    "ent-two-pass": "**Parallel Entroformer: context + hyperprior (two-pass)**",
    "context-no-position": "without position encoding",
    "context-absolute": "absolute positions, learned",
    "context-square": "square relative positions",
    "context-dense": "dense attention instead of top-k",
    "context-head-scale": "scores divided by sqrt(dim_head)",
    "context-mixtures": "three Gaussians per latent",
    "serial-deep-prior": "serial with hyperprior, factorised prior of z",
}
# what published.csv calls a row (table derived_variant_rate_change)
PUBLISHED_NAMES = {
    "cnn-hyper": "CNN: hyperprior only",
    "cnn-context": "CNN: context only",
    "ent-hyper": "Entroformer: hyperprior only",
    "ent-context": "Entroformer: context only (serial)",
    "ent-serial": "Entroformer: context + hyperprior (serial)",
    "ent-two-pass": "Parallel Entroformer: context + hyperprior (bidirectional two-pass)",
}
VARIANTS = (
    "cnn-hyper",
    "cnn-context",
    "cnn-serial",
    "cnn-two-pass",
    "ent-hyper",
    "ent-context",
    "ent-serial",
    "ent-two-pass",
)


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(EntroformerParams, "entroformer")
    runs = Path("runs/entroformer") / params.scale
    seed = params.seeds[0]
    inputs = [runs / "evaluate"]
    timed = "codec" in params.tracks and {"ent-serial", "ent-two-pass"} <= set(params.tracks["codec"].methods)
    if timed and "entroformer" in params.families:
        inputs.append(runs / "train" / f"entroformer-{seed}")
    with Stage("entroformer", params, inputs):
        results = read_parquet(runs / "evaluate" / "results.parquet")
        timings = Timings(report_folder("entroformer", params.scale) / "timings.json")
        decodings = decoding_times(params, inputs[1], timings) if len(inputs) == 2 else {}
        claims = check_claims(results, decodings, params)
        table = table_markdown(results, decodings, timings, params)
        write_report(
            "entroformer",
            params.scale,
            results,
            table,
            claims,
            lambda output: draw_figures(results, params, output),
            timings,
        )


def decoding_times(params: EntroformerParams, trained: Path, timings: Timings) -> dict[str, Decoding]:
    """Decoding of the serial and the two-pass codec at both sizes, by `<method>/<size>`."""
    found: dict[str, Decoding] = {}
    for method in ("ent-serial", "ent-two-pass"):
        path = trained / f"{Job('codec', method, params.tracks['codec'].lambdas[-1]).name}.safetensors"
        codec, digest = load_model(path), sha256(path)[:12]
        for name, size in (("small", SMALL), ("large", LARGE)):
            found[f"{method}/{name}"] = measure(codec, size, timings, f"{method} {name} {digest}")
    return found


def table_markdown(
    results: pd.DataFrame, decodings: dict[str, Decoding], timings: Timings, params: EntroformerParams
) -> str:
    """`table.md`: all tables of the card that this scale fills."""
    parts = [
        f"# Entroformer: a transformer entropy model for learned image compression, {params.scale} scale\n",
        _variants(results, params),
        _ablations(results, params),
        _files(results, params),
        _bd_rates(results, params),
        _complexity(decodings, timings),
        _published(),
    ]
    return "\n".join(part for part in parts if part)


def _data(params: EntroformerParams) -> str:
    source = (
        "generated dead leaves" if params.data.source == "dead-leaves" else "BSDS500 to train, Kodak to test"
    )
    return f"{params.scale} scale, not the paper's setting: {source}"


def _variants(results: pd.DataFrame, params: EntroformerParams) -> str:
    """T3: entropy models on the same fixed latents, and the published changes."""
    if "latents" not in params.tracks:
        return ""
    track = params.tracks["latents"]
    known = published("entroformer")
    known = known[known["table"] == "derived_variant_rate_change"]
    known = known[
        known["setting"].str.contains("CNN: context") & ~known["setting"].str.contains("serial Entroformer")
    ]
    theirs = dict(zip(known["method"], known["value"], strict=True))
    base = rate(results, "cnn-serial")
    lines = []
    for method in VARIANTS:
        values = rate(results, method)
        if values.empty:
            continue
        number = theirs.get(PUBLISHED_NAMES.get(method, ""))
        lines.append(
            [
                LABELS[method],
                mean_std(values, 4),
                mean_std((100 * (values / base - 1)).dropna()),
                "–" if number is None else f"{number:+.1f}",
                f"{rate(results, method, 'parameters').mean() / 1e3:.0f}",
            ]
        )
    header = [
        "entropy model",
        "bits per pixel",
        "change to CNN both, %",
        "published change, %",
        "parameters (k)",
    ]
    return (
        f"## Entropy models on the same latents (T3; {_data(params)})\n\n"
        f"Estimated rate of fixed latents ({track.latents} coefficients of an 8x8 DCT) of {params.data.test_crops} held-out "
        f"crops of {params.data.crop} pixels: the distortion is the same for every row. "
        f"{track.pretrain_steps + track.steps} steps of {track.batch} crops for every row, width {track.dim}; mean ± std "
        f"over n = {len(params.seeds)} seeds of training. The two rows in bold start from a pre-training with random masks "
        f"({track.pretrain_steps} of the steps). Published: mean change over 29-36 dB on Kodak, from the paper's figure.\n\n"
        + markdown_table(header, lines)
    )


def _ablations(results: pd.DataFrame, params: EntroformerParams) -> str:
    """T4: variants of the serial context alone, and other k at inference."""
    base = rate(results, "ent-context")
    if base.empty:
        return ""
    rows = [("ent-context", LABELS["ent-context"])]
    methods = params.tracks["latents"].methods if "ablation" in params.families else []
    rows += [(m, LABELS[m]) for m in methods if m.startswith("context-")]
    lines = [
        [label, mean_std(rate(results, m), 4), mean_std(100 * (rate(results, m) / base - 1))]
        for m, label in rows
    ]
    for k in params.topk_sweep:
        values = rate(results, "ent-context", f"bpp, k={k} at inference")
        name = "all keys" if k < 0 else f"k = {k}"
        lines.append(
            [f"{name} at inference, same weights", mean_std(values, 4), mean_std(100 * (values / base - 1))]
        )
    k = params.tracks["latents"].topk
    return (
        f"## Ablations of the serial context (T4; {_data(params)})\n\n"
        f"Context only, k = {k} unless named; change paired by seed.\n\n"
        + markdown_table(["variant", "bits per pixel", "change, %"], lines)
    )


def _files(results: pd.DataFrame, params: EntroformerParams) -> str:
    """T1: real files."""
    rows = results[results["table"].isin(["files", "anchors"])]
    if rows.empty:
        return ""
    lines = []
    for (method, setting), part in rows.groupby(["method", "setting"], sort=False):
        values = {metric: group["value"] for metric, group in part.groupby("metric")}
        columns = [("bpp", 4), ("bpp, estimated", 4), ("PSNR", 2), ("MS-SSIM", 4)]
        lines.append(
            [f"{method}, {setting}", *(mean_std(values.get(m, []), digits) for m, digits in columns)]
        )
    return (
        f"## Real files (T1; {_data(params)})\n\n"
        f"{params.data.test_pictures} whole pictures; bits per pixel count every byte of the file, headers included (the "
        "learned codec's is 24 bytes). Quality of the 8-bit picture that decoding gives. Anchors through Pillow.\n\n"
        + markdown_table(["codec", "bits per pixel", "estimated", "PSNR, dB", "MS-SSIM"], lines)
    )


def _bd_rates(results: pd.DataFrame, params: EntroformerParams) -> str:
    """T2: BD-rate of every trained codec against every anchor and every other, where curves have four points."""
    trained = sorted(set(results.loc[results["table"] == "files", "method"]))
    if not trained:
        return ""
    if (points := len(params.tracks["codec"].lambdas)) < 4:
        return f"## BD-rate (T2)\n\nNeeds curves of four points; a codec has {points} at this scale.\n"
    names = [*ANCHORS, *trained]

    def cell(method: str, name: str) -> str:
        if method == name:
            return ""
        try:
            values = [bd_rate(*curve(results, name, s), *curve(results, method, s)) for s in params.seeds]
        except ValueError:
            return "–"
        return mean_std(values, 1)

    lines = [[method, *(cell(method, name) for name in names)] for method in trained]
    return (
        f"## BD-rate, % (T2; {_data(params)})\n\nPchip on log rate over the common PSNR; – where curves have no common "
        "range or do not rise.\n\n" + markdown_table(["codec", *names], lines)
    )


def _complexity(decodings: dict[str, Decoding], timings: Timings) -> str:
    """T5: passes and seconds of decoding."""
    if not decodings:
        return ""
    lines = []
    for key, d in decodings.items():
        method = key.partition("/")[0]
        uncached = f"{d.uncached_seconds:.1f}" if method == "ent-serial" else "–"
        lines.append(
            [
                f"{method}, {d.size[1]}x{d.size[0]}",
                str(d.positions),
                str(d.passes),
                f"{d.seconds:.3f}",
                uncached,
            ]
        )
    return (
        "## Decoding (T5)\n\nFrom bytes to latents with the codec track's models (sums are exact), one thread, "
        f"{timings.machine}; median of 3. Uncached: the context over the whole grid for every position, "
        "extrapolated from one.\n\n"
        + markdown_table(["model, picture", "positions", "network passes", "seconds", "uncached, s"], lines)
    )


def _published() -> str:
    rows = published("entroformer")
    rows = rows[rows["table"] == "rd_kodak_psnr"]
    points = rows["setting"].str.extract(r"point (\d+) of")[0].astype(int)
    wide = rows.assign(point=points).pivot_table(index="point", columns="metric", values="value")
    lines = [[str(point), f"{row['bpp']:.4f}", f"{row['PSNR']:.2f}"] for point, row in wide.iterrows()]
    return (
        "## Published (Kodak, the paper's setting; not comparable with the small tables above)\n\n"
        "Serial Entroformer, from `reports/published/entroformer.csv`, which gives the source of each number.\n\n"
        + markdown_table(["point", "bits per pixel", "PSNR, dB"], lines)
    )


if __name__ == "__main__":
    run(main)
