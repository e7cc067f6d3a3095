"""Where the project's files are, and small data sets as other people write them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


ROOT = Path(__file__).resolve().parent.parent.parent
EMOJI = ROOT / "examples" / "data" / "emoji"
FIXTURES = ROOT / "tests" / "fixtures"


def write_parquet(path: Path, images: list[bytes], row_group_size: int, column: str = "image", **options: Any) -> Path:
    """A parquet file as others make them: a struct of bytes and path, with the features that `datasets` reads."""
    rows = [{"bytes": data, "path": f"{index}.png"} for index, data in enumerate(images)]
    features = json.dumps({"info": {"features": {column: {"_type": "Image"}}}})
    schema = pa.schema(
        [(column, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))], metadata={"huggingface": features}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: rows}, schema=schema), path, row_group_size=row_group_size, **options)
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of files, by their names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path
