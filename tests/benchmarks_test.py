"""Those benchmarks whose results are figures that others lean on; timings are not tested."""

import importlib.util
import json

import pytest

from sivdnas_tf.zoo import registry


@pytest.fixture(name="load", scope="module")
def fixture_load(request):
    """A function of a benchmark's name to its module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, request.config.rootpath / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_published_sizes_reproduce_mobilenet_and_what_the_paper_prints_of_published_cells(load):
    module = load("published_sizes")
    rows = {
        entry[0]: module.row(2, module.IMAGENET, *entry)
        for entry in module.TABLE_2
        if entry[0] in ("MobileNet", "P-DARTS", "FairDARTS-B", "DARTS (2nd order)")
    }
    mobilenet = rows["MobileNet"]
    assert (mobilenet["published_macs_M"], mobilenet["published_params_M"]) == ("569", "4.2")
    assert (round(mobilenet["macs"] / 1e6), round(mobilenet["params"] / 1e6, 1)) == (569, 4.2)
    reproduced = {name: tuple(row["reproduced_by"].values()) for name, row in rows.items()}
    assert reproduced == {
        "MobileNet": ("params", "macs"),
        "P-DARTS": ("params", "macs_ptflops"),
        "FairDARTS-B": ("params, cut off", "macs"),
        "DARTS (2nd order)": ("params", "not reproduced"),  # quark0/darts#46
    }
    assert rows["P-DARTS"]["macs_ptflops"] == registry.entry("PDARTS")["counts"]["imagenet"]["macs_ptflops"]
    assert json.loads(json.dumps(mobilenet)) == mobilenet


def test_a_rounded_figure_is_not_taken_for_another(load):
    module = load("published_sizes")
    assert module.reproducing("569", {"macs": 568_500_000, "macs_ptflops": 568_499_999}) == ["macs"]
    assert module.verdict("4.8", {"params": 4_865_000}, False) == "params, cut off"
    assert module.verdict("4.7", {"params": 4_865_000}, True) == "not reproduced (own network)"


def test_profile_speed_prices_its_files_without_tensorflow(load, tmp_path):
    module = load("profile_speed")
    paths = module.write_files(tmp_path)
    assert len({path.read_bytes() for path in paths}) == len(paths) == 100
    row = module.measure("files", [f"--genotype={','.join(map(str, paths))}", "--network=imagenet"], 100, runs=1)
    assert (row["genotypes"], row["tensorflow_imported"]) == (100, False)
    # A flag that needs TensorFlow imports it: the case above can fail.
    small = ["--genotype=SNAS_aggressive", "--network=cifar", "--channels=2", "--cells=3", "--resolution=8", "--tf_profiler"]
    assert module.measure("profiler", small, 1, runs=1)["tensorflow_imported"]
