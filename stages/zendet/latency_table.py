"""The authors' tables of measured convolutions (`tinynas/latency/op_profiler/V100/conv_data.out*` of their repository)."""

import re
from pathlib import Path

from stages.common.stage.errors import InputError
from stages.zendet.method.latency import ConvQuery, LatencyTable, TableRow

TABLE_LINE = re.compile(r"\{(Regular|Depthwise),(\d+),(\d+),(\d+),(\d+),(\d+),(\d+),(\d+),([01])\}\s+(\S+)")


def read_latency_table(path: Path) -> LatencyTable:
    """Lines `{Regular,batch,inC,H,W,outC,k,stride,fused} ms`.

    Raises:
        InputError: the file is missing, or a line is not like that.
    """
    rows = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = TABLE_LINE.fullmatch(line.strip())
        try:
            kind, *numbers, ms = match.groups() if match else ()
            batch, cin, height, _, cout, kernel, stride, fused = map(int, numbers)
            query = ConvQuery(kind == "Depthwise", cin, height, cout, kernel, stride, fused)
            rows.append(TableRow(query, batch, float(ms)))
        except ValueError:
            raise InputError(
                f"{path}: line {number}: must be {{Regular|Depthwise,batch,inC,H,W,outC,k,stride,fused}} ms"
            ) from None
    return LatencyTable(rows)
