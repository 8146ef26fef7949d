"""img2dataset's own `download`, which starts its processes for each run, from a list of URLs to WebDataset shards.

It makes no other picture of any (`resize_mode="no"`, `disable_all_reencoding`); it takes their SHA-256 and, where the
task says `exif`, reads their EXIF, both of which it does by default and we do, and writes them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # one of its packages asks the network for a newer version of itself

from benchmarks.engines.serve import Run, Task, serve


def build(task: Task) -> tuple[Run, Mapping[str, str]]:
    """One `download` of all lists; raises RuntimeError unless every URL gave its bytes."""
    import json

    from img2dataset import download

    def run(files: Sequence[str], collect: bool) -> Mapping[str, str]:
        folder = Path(tempfile.mkdtemp(prefix="img2dataset-", dir=task["folder"]))
        try:
            urls = [url for file in files for url in Path(file).read_text().splitlines()]
            listed = folder / "urls.txt"
            listed.write_text("\n".join(urls) + "\n")
            download(
                url_list=str(listed),
                output_folder=str(folder / "out"),
                output_format="webdataset",
                processes_count=task["processes"],
                thread_count=task["threads"],
                number_sample_per_shard=task["per_shard"],
                resize_mode="no",
                disable_all_reencoding=True,
                extract_exif=task["exif"],
                timeout=60,
            )
            stats = [json.loads(path.read_text()) for path in (folder / "out").glob("*_stats.json")]
            n_had = sum(one["successes"] for one in stats)
            if n_had < len(urls):
                raise RuntimeError(f"{n_had} of {len(urls)} images were had: {[one['status_dict'] for one in stats]}")
            return {"images": str(n_had)} if collect else {}
        finally:
            shutil.rmtree(folder)

    return run, {"img2dataset": version("img2dataset")}


if __name__ == "__main__":
    serve(build)
