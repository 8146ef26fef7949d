"""Crawl, featurize, check: the jobs on Spark. Importing any of them first makes sure that no stranger is imported."""

from importlib.util import find_spec
from pathlib import PurePath


def _refuse_shadowed_packages() -> None:
    """`jobs`, `featurizers` and `schemas` are plain names: refuse one that another project's folder answers to."""
    home = PurePath(__file__).parent.parent
    for name in ("featurizers", "schemas"):
        found = find_spec(name)
        places = [PurePath(place).parent for place in (found.submodule_search_locations or ())] if found else []
        if home not in places:
            where = str(places[0] / name) if places else "nowhere"
            raise ImportError(
                f"package {name!r} is imported from {where}, but {__name__!r} from {home / __name__}: another folder "
                "on sys.path shadows Lakelens; start from its own folder or take the other one off PYTHONPATH"
            )


_refuse_shadowed_packages()
