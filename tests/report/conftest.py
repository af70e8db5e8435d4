import html.parser
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from sivdnas_tf.config import Config, replace
from sivdnas_tf.derive import derive
from sivdnas_tf.genotype import Genotype
from sivdnas_tf.posterior import CellPosterior, Posterior, keep_probability
from sivdnas_tf.run_dir import RunDir, write_json
from sivdnas_tf.search_space import CELL_TYPES, get_search_space
from sivdnas_tf.uncertainty import describe

SVG = "{http://www.w3.org/2000/svg}"
EPOCHS, WARMUP = 6, 2
FINDINGS = [
    {"name": "accuracy_fell", "seen": "it fell from 0.75 to 0.25", "advice": "try less", "epochs": [3]},
    {"name": "skip_connections", "seen": "75% of the operations", "advice": "try a smaller search.kl_weight", "epochs": [3, 5, 6]},
]


def make_cell(edges, concat):
    """`[(predecessor, node, operation), …]` as the JSON of a cell."""
    return {"edges": [{"node": node, "predecessor": predecessor, "operation": name} for predecessor, node, name in edges], "concat": concat}


def make_genotype(normal, reduction, name="hand-made"):
    return Genotype.from_dict({"schema_version": 1, "name": name, "normal": make_cell(*normal), "reduction": make_cell(*reduction)})


@pytest.fixture(name="make_genotype", scope="session")
def make_genotype_fixture():
    return make_genotype


@pytest.fixture(scope="session")
def texts():
    """All texts of an SVG element's groups of a class, in order."""

    def read(svg, class_):
        return [
            "".join(text.itertext()) for group in svg.iter(f"{SVG}g") if group.get("class") == class_ for text in group.iter(f"{SVG}text")
        ]

    return read


class Page(html.parser.HTMLParser):
    """A parsed page: tags with attributes, cells of tables, and whether every tag was closed in order."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.source, self.tags, self.open, self.tables, self.texts = source, [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.svgs = [ET.fromstring(drawing) for drawing in re.findall(r"<svg .*?</svg>", source, re.DOTALL)]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"closed out of order: {tag}"

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return "".join(self.texts)

    def table(self, first_header):
        """The rows below the header of the table whose first column has this name, as dicts."""
        (rows,) = [rows for rows in self.tables if rows[0][0] == first_header]
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.fixture(scope="session")
def parse_page():
    return lambda path: Page(path.read_text(encoding="utf-8"))


def _posterior():
    """A posterior in which about half is dropped, and its history from all kept."""
    space, generator = get_search_space("darts"), np.random.default_rng(7)
    n_edges, n_primitives = len(space.edges), len(space.primitives)
    cells, history = {}, {}
    for cell_type in CELL_TYPES:
        operation, edge = generator.normal(0.3, 1.5, (n_edges, n_primitives)), generator.normal(-1.0, 1.5, n_edges)
        cells[cell_type] = CellPosterior(np.ones_like(operation), operation, np.ones_like(edge), edge)
        share = np.linspace(0.0, 1.0, EPOCHS)
        history[f"{cell_type}_operation_keep_probability"] = keep_probability(-5 + share[:, None, None] * (operation + 5))
        history[f"{cell_type}_edge_keep_probability"] = keep_probability(-5 + share[:, None] * (edge + 5))
    history |= {"epoch": np.arange(1, EPOCHS + 1), "edges": np.array(space.edge_names), "primitives": np.array(space.primitives)}
    return Posterior("darts", EPOCHS, cells["normal"], cells["reduction"]), history


def _add_search(run_dir):
    posterior, history = _posterior()
    records = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "loss": 2.125 / epoch,
            "accuracy": 1 - 0.75 / epoch,
            "architecture_loss": 2.25 / epoch,
            "architecture_accuracy": 1 - 0.875 / epoch,
            "kl": 321.5 / epoch,
            "mixing_gradient_norm": None if epoch <= WARMUP else 0.5 / epoch,
            "dropout_rate_gradient_norm": None if epoch <= WARMUP else 0.25 / epoch,
            "expected_macs": 5e8 / epoch,
            "macs_low": 4e8 / epoch,
            "macs_high": 6e8 / epoch,
            "mean_entropy": 0.375 * epoch,
            "skip_share": 0.125 * epoch,
            "weightless_share": 0.5,
            "findings": ["skip_connections"] if epoch > 4 else [],
            "prior_gap": 0.95 ** max(0, epoch - WARMUP),
            "learning_rate": 0.025,
            "frozen": epoch <= WARMUP,
            "seconds": 3.5,
            "images_per_second": 400.0,
        }
        for epoch in range(1, EPOCHS + 1)
    ]
    run_dir.write_metrics("search", records)
    run_dir.write_npz("search/posterior_history.npz", history)
    write_json(run_dir.file("search/diagnosis.json"), {"epochs": EPOCHS, "findings": FINDINGS})
    run_dir.write_posterior(posterior)


def _add_derive(run_dir):
    config = Config.from_dict(json.loads(run_dir.file("config.json").read_text()))
    derivation = derive(run_dir.read_posterior(), rule="budget", seed=0, budget=config.budget, name="found here")
    run_dir.write_genotype(derivation.genotype)
    uncertainty = describe(run_dir.read_posterior(), config.budget)
    write_json(run_dir.file("derive.json"), {**derivation.details, "uncertainty": uncertainty})


def _add_train(run_dir):
    records = [
        {"epoch": epoch, "step": epoch, "loss": 1.75 / epoch, "accuracy": 1 - 0.5 / epoch}
        | {"holdout_loss": 1.875 / epoch, "holdout_accuracy": 1 - 0.625 / epoch, "learning_rate": 0.01, "drop_path_rate": 0.1}
        for epoch in range(1, 5)
    ]
    run_dir.write_metrics("train", records)
    run_dir.file("train/weights.weights.h5").write_bytes(b"weights")


def _add_evaluate(run_dir):
    write_json(run_dir.file("evaluation.json"), {"split": "test", "images": 359, "top1": 0.9637, "top5": 0.9972, "loss": 0.125})


def _add_export(run_dir):
    artifacts = [
        {"format": "saved_model", "path": "saved_model/1", "bytes": 765432, "sha256": "0123456789abcdef" * 4, "max_abs_diff": 0.0}
        | {"input": {}, "output": {}, "top1_agreement": 1.0, "latency_ms": 4.25},
        {"format": "onnx", "path": "model.onnx", "bytes": 234567, "sha256": "fedcba9876543210" * 4, "max_abs_diff": 1.5e-06}
        | {"input": {}, "output": {}, "top1_agreement": 0.9961, "latency_ms": None},
    ]
    model = {"network": "cifar", "channels": 8, "cells": 5, "classes": 10, "macs": 1357911, "params": 24680, "preprocessing": "inside"}
    write_json(run_dir.file("export/manifest.json"), {"model": model, "artifacts": artifacts})


_ADD = {"search": _add_search, "derive": _add_derive, "train": _add_train, "evaluate": _add_evaluate, "export": _add_export}


@pytest.fixture
def make_run(tmp_path):
    """Makes a run directory with what the given stages leave; `stages` may be the name of one or all of them in order."""

    def make(*stages, name="run", macs=700e6):
        run_dir = RunDir(tmp_path / name)
        write_json(run_dir.file("config.json"), replace(Config(), budget={"macs": macs}).to_dict())
        for stage in stages:
            _ADD[stage](run_dir)
        return run_dir

    return make
