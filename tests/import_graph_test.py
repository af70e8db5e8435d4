"""The layer table of ARCHITECTURE.md, held against what the modules import, inside functions too."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OURS = ("sivdnas_tf", "export", "configs")
THIRD_PARTY_OF_L0 = {"numpy"}

RULES = ("darts_rule", "derive", "uncertainty", "diagnosis")  # what becomes of a posterior, and what it tells

# A new module gets its line here: imports point to the same layer or a lower one.
LAYERS = {
    0: (
        *("errors", "genotype", "darts_genotype", "search_space", "posterior", "config", "run_dir", "quiet", "random_search"),
        *("architecture_string", "config_fields"),
        *(f"methods.{name}" for name in ("method", "registry", "si_vdnas", "h_vdnas", "v_vdnas", "darts", "random")),
    ),
    1: (
        "variational.distributions",
        "variational.kl",
        "layers.blocks",
        "layers.depthwise",
        "layers.drop_path",
        "layers.normalization",
        "profiling.costs",
        "profiling.tf_profiler",
        "data.augment",
        "data.collect",
        "data.description",
        "data.folders",
        "data.images",
        "training.averaging",
        "data.record_files",
        "data.records",
        "data.splits",
        "data.streamed_datasets",
        "data.streams",
        "training.schedules",
        "training.hypergradient",
        "training.distribution",
        "training.tracing",
    ),
    2: (
        "layers.operations",
        "layers.architecture_parameters",
        "layers.mixing_weights",
        "layers.semi_implicit_dropout",
        "models.heads",
        "data.datasets",
        "training.objective",
        *RULES,
        "zoo.registry",
    ),
    3: ("layers.mixed_operation", "models.cells", "training.loop"),
    4: ("models.supernet", "models.evaluation_network", "training.evaluate"),
    5: ("training.predict", "training.score", "training.search", "training.search_history", "training.train"),
    6: (
        "report.costs_picture",
        "report.curves",
        "report.drawing",
        "report.dropped",
        "report.health",
        "report.layered",
        "report.layout",
        "report.markup",
        "report.page",
        "report.run_files",
        "report.sections",
        *(f"tuning.{name}" for name in ("analysis", "cluster", "oracles", "records", "settings", "space", "trials", "tuner", "validation")),
    ),
    7: ("pricing", "commands", "__main__"),  # what __main__ runs shares its licence to import export
}
LAYER_OF = {f"sivdnas_tf.{name}": layer for layer, names in LAYERS.items() for name in names}
LAYER_OF |= {f"export.{name}": 6 for name in ("freeze", "latency", "pipeline", "runtimes", "saved_model", "to_onnx", "to_tflite", "verify")}
CONFIGS = (
    "configs.quickstart",
    "configs.tune_digits",
    "configs.cifar10",
    "configs.cifar10_convergence",
    "configs.cifar10_small",
    "configs.nasbench201_cifar10",
    "configs.cifar10_eval",
    "configs.cifar100_eval",
    "configs.imagenet_eval",
)
TOP = ("sivdnas_tf.pricing", "sivdnas_tf.commands", "sivdnas_tf.__main__")

_WITH_TENSORFLOW = {"tuning.oracles", "tuning.trials", "tuning.tuner", "tuning.validation"}

# Importing these must not import TensorFlow: a command can price, refuse or derive before it starts.
TENSORFLOW_FREE = (
    *(
        f"sivdnas_tf.{name}"
        for name in (
            *LAYERS[0],
            *(set(LAYERS[6]) - _WITH_TENSORFLOW),
            *LAYERS[7],
            "data.description",
            "profiling.costs",
            *RULES,
            "zoo.registry",
        )
    ),
    *CONFIGS,
)


def sources():
    """Source text of every module of ours, by dotted name; packages by the name of the package."""
    result = {}
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return result


def imports(source, importer="sivdnas_tf.x"):
    """Dotted names that a source imports anywhere, `from a import b` as both `a` and `a.b`; importlib with a literal counts too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*importer.split(".")[: -node.level], *filter(None, [node.module])]) if node.level else node.module
            found.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) in ("import_module", "__import__"):
            found.add(ast.literal_eval(node.args[0]))
    return found


SOURCES = sources()
PACKAGES = {name for name in SOURCES if any(other.startswith(f"{name}.") for other in SOURCES)}
MODULES = {name: source for name, source in SOURCES.items() if name not in PACKAGES}
IMPORTS = {name: imports(source, name) for name, source in MODULES.items()}


def upward(imports_of, layer_of):
    """`(importer, imported)` for every import that points up."""
    return [
        (name, imported)
        for name, all_imported in imports_of.items()
        for imported in sorted(all_imported & layer_of.keys())
        if layer_of[imported] > layer_of.get(name, max(layer_of.values()))
    ]


def importers_of(*top_levels):
    return {name for name, all_imported in IMPORTS.items() if {imported.partition(".")[0] for imported in all_imported} & set(top_levels)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b as c, d", {"a.b", "d"}),
        ("def f():\n    from a import b", {"a", "a.b"}),
        ("class C:\n    def m(self):\n        if self:\n            import a", {"a"}),
        ("from . import b", {"sivdnas_tf", "sivdnas_tf.b"}),
        ("from .b import c", {"sivdnas_tf.b", "sivdnas_tf.b.c"}),
        ("importlib.import_module('a.b')", {"a.b"}),
        ("__import__('a')", {"a"}),
    ],
)
def test_imports_are_found_wherever_they_stand(source, expected):
    assert imports(source) == expected


def test_an_import_by_a_computed_name_is_not_passed_over():
    with pytest.raises(ValueError, match="malformed node"):
        imports("importlib.import_module(name)")


def test_an_upward_import_is_seen():
    table = {"a": 0, "b": 1}
    assert upward({"a": {"b"}}, table) == [("a", "b")]
    assert not upward({"b": {"a", "numpy"}, "a": {"a"}}, table)


def test_every_module_has_its_layer():
    assert MODULES.keys() == LAYER_OF.keys() | set(CONFIGS), "a module that is new or gone: correct LAYERS above"
    assert sum(len(names) for names in LAYERS.values()) == len({name for names in LAYERS.values() for name in names})


def test_packages_are_empty():
    assert {name for name in PACKAGES if SOURCES[name]} == set()
    assert {"sivdnas_tf", "sivdnas_tf.layers", "export", "configs"} <= PACKAGES


def test_imports_point_down_only():
    assert upward(IMPORTS, LAYER_OF) == []


def test_there_is_no_cycle():
    graph = {name: all_imported & MODULES.keys() for name, all_imported in IMPORTS.items()}
    assert sum(len(imported) for imported in graph.values()) > len(MODULES)  # the graph is there
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"cycle of imports: {' -> '.join(error.args[1])}")


def test_the_lowest_layer_needs_the_standard_library_and_numpy_only():
    allowed = set(sys.stdlib_module_names) | THIRD_PARTY_OF_L0 | {"sivdnas_tf"}
    names = [f"sivdnas_tf.{name}" for name in LAYERS[0] if name != "quiet"]  # quiet imports TensorFlow for others, in a function
    assert {name: foreign for name in names if (foreign := {each.partition(".")[0] for each in IMPORTS[name]} - allowed)} == {}


def test_flags_and_configuration_files_stay_at_the_top():
    assert importers_of("absl", "ml_collections") <= {"sivdnas_tf.__main__", *CONFIGS}
    assert "sivdnas_tf.__main__" in importers_of("absl")
    assert importers_of("configs") <= set(CONFIGS)


def test_export_is_imported_from_the_top_only():
    outside = {name for name in importers_of("export") if not name.startswith("export.")}
    assert outside <= set(TOP)
    assert outside  # it is imported at all


def test_keras_2_is_not_imported():
    assert importers_of("tf_keras") == set()


def test_whoever_says_so_is_tensorflow_free():
    declared = {name for name, source in MODULES.items() if "Imports no TensorFlow" in (ast.get_docstring(ast.parse(source)) or "")}
    assert declared and declared <= set(TENSORFLOW_FREE)


def test_tensorflow_free_modules_do_not_pull_it_in():
    heavy = ("tensorflow", "keras", "tensorflow_probability", "tensorflow_datasets")
    code = (
        f"import importlib, sys\nfor name in {TENSORFLOW_FREE!r}: importlib.import_module(name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr
