"""How due media are cut into waves, and how a featurizer of the configuration is found."""

from dataclasses import replace

import pytest

from featurizers.spec import UnknownFeaturizer, find_spec, prepared
from featurizers.weights import resolve
from jobs.config import ConfigError, load_config
from jobs.work import MediaFile, assign_waves, configured_spec, prepare


def test_a_wave_keeps_within_rows_and_bytes_and_loses_no_file() -> None:
    files = [MediaFile(f"{i}", n_media=3, size_bytes=10) for i in range(10)]
    by_rows = assign_waves(files, max_media=7, max_bytes=1000)
    by_bytes = assign_waves(files, max_media=100, max_bytes=30)
    assert [len(wave) for wave in by_rows] == [2, 2, 2, 2, 2]
    assert [len(wave) for wave in by_bytes] == [3, 3, 3, 1]
    assert [file for wave in by_rows for file in wave] == files


def test_a_file_above_a_bound_is_a_wave_of_its_own() -> None:
    files = [MediaFile("small", 1, 1), MediaFile("big", 50, 1), MediaFile("small2", 1, 1)]
    assert [[f.path for f in w] for w in assign_waves(files, max_media=10, max_bytes=10)] == [
        ["small"],
        ["big"],
        ["small2"],
    ]


def test_nothing_due_is_no_wave() -> None:
    assert assign_waves([], max_media=1, max_bytes=1) == []


def test_an_unknown_featurizer_is_refused_with_the_ids_there_are() -> None:
    config = load_config(assignments=["featurize.featurizers=[concept_nothing.x@1]"])
    with pytest.raises(UnknownFeaturizer, match=r"concept_nothing.x@1.*concept_efficientnet.lite0@1"):
        prepare(config.featurize)


def test_no_featurizer_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="featurizers is empty"):
        prepare(load_config(assignments=["featurize.featurizers=[]"]).featurize)


def test_a_family_without_configurable_models_says_so() -> None:
    config = load_config(assignments=["featurize.models={object_yolov3.mine: 'file:///x'}"])
    with pytest.raises(ConfigError, match="object_yolov3 takes no configured model"):
        configured_spec("object_yolov3.mine@1", config.featurize)


@pytest.mark.parametrize("featurizer_id", ["concept_efficientnet.lite0_fp16@1", "object_yolov3.tiny_fp16@1"])
def test_a_half_precision_network_is_converted_once_and_half_as_large(featurizer_id: str) -> None:
    spec, weights = resolve(find_spec(featurizer_id))
    (network,) = set(prepared(spec, weights).items()) - set(weights.items())
    (whole,) = set(prepared(replace(spec, precision="float32"), weights).items()) - set(weights.items())
    assert prepared(spec, dict([network]))[network[0]] == network[1]
    assert 0.49 < network[1].stat().st_size / whole[1].stat().st_size < 0.52
    with pytest.raises(ValueError, match="precision is 'int4', allowed: float32, float16"):
        prepared(replace(spec, precision="int4"), weights)


def test_executors_are_given_networks_that_are_converted_already() -> None:
    work = prepare(load_config(assignments=["featurize.link_captions=false"]).featurize)
    networks = [path for one in work.due for name, path in one.paths.items() if name in ("lite0", "yolov3_tiny")]
    assert [path.suffix for path in networks] == [".onnx", ".onnx"]
