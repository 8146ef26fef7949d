"""The configuration is checked whole, and its errors name the key, the value and what is allowed."""

from pathlib import Path

import pytest

from jobs.config import ConfigError, load_config, merge, parse_assignment


def test_files_are_laid_over_the_base_in_order_and_assignments_last(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("crawl: {delay_s: 2, max_attempts: 4}")
    (tmp_path / "b.yaml").write_text("crawl: {delay_s: 3}")
    config = load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["crawl.max_redirects=1"])
    assert (config.crawl.delay_s, config.crawl.max_attempts, config.crawl.max_redirects) == (3, 4, 1)


def test_merging_changes_neither_side() -> None:
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, over) == {"a": {"b": 1, "c": 2}}
    assert (base, over) == ({"a": {"b": 1}}, {"a": {"c": 2}})


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("crawl.dely_s=1", r"crawl\.dely_s is not a configuration key; allowed here: .*delay_s"),
        ("crawl.delay_s=-1", r"crawl\.delay_s = -1: .*greater than or equal to 0"),
        ("crawl.delay_s=soon", r"crawl\.delay_s = 'soon'"),
        ("crawl.sources=[{name: x, kind: ftp, uri: y}]", r"crawl\.sources\.0\.kind = 'ftp': .*'table' or 'site'"),
        (
            "crawl.opt_outs=[noai, no-ai]",
            r"crawl\.opt_outs: 'no-ai' is none that we know, allowed: noai, noimageai, .*noindex, tdm-reservation",
        ),
        ("nothing=1", r"nothing is not a configuration key; allowed here: .*crawl.*lake"),
        ("no equals sign", r"--set 'no equals sign' is not of the form"),
        ("a=[", "the value is not YAML"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(assignments=[assignment])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_config([tmp_path / "nowhere.yaml"])
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match=r"list\.yaml holds a list"):
        load_config([tmp_path / "list.yaml"])


def test_an_assignment_reads_its_value_as_yaml() -> None:
    assert parse_assignment("a.b=[1, x]") == {"a": {"b": [1, "x"]}}


def test_equal_configurations_have_equal_digests() -> None:
    assert load_config().digest() == load_config().digest()
    assert load_config().digest() != load_config(assignments=["lake=other"]).digest()


def test_a_misspelt_key_of_a_source_is_told_with_those_that_there_are() -> None:
    source = {"name": "s", "kind": "site", "start": ["http://a.example/"], "max_page": 3}
    with pytest.raises(
        ConfigError, match=r"crawl\.sources\.0\.max_page is not .* allowed here: archive, depth, .*max_pages"
    ):
        load_config((), (), {"crawl": {"sources": [source]}})
