"""A run directory becomes one HTML page: no script, no other file, no network."""

from sivdnas_tf.report import health, sections
from sivdnas_tf.report.dropped import dropped
from sivdnas_tf.report.markup import element, escape
from sivdnas_tf.report.run_files import read_run_files
from sivdnas_tf.run_dir import write_bytes

_SECTIONS = (
    ("The cells", sections.cells),
    ("What was dropped, and why", dropped),
    ("Diagnosis of the search", health.diagnosis),
    ("Keep probabilities", sections.keep_probabilities),
    ("Uncertainty of the posterior", health.uncertainty),
    ("KL divergence and prior gap", sections.prior),
    ("Learning curves of the search", sections.search_curves),
    ("Learning curves of the training", sections.train_curves),
    ("Cost", sections.cost),
    ("Exported artifacts", sections.artifacts),
)

# Nothing is loaded, whatever a name in a file smuggled in.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 1360px; margin: 24px auto; padding: 0 20px }
h1 { margin-bottom: 0; overflow-wrap: anywhere } h2 { margin-top: 40px; border-bottom: 1px solid #d5dbe1 } h3 { margin-bottom: 4px }
.summary { font-size: 17px } .note, .absent { color: #5b6774; max-width: 980px } .absent { font-style: italic }
.warning, .finding { background: #fff1e5; border-left: 5px solid #d55e00; padding: 10px 14px }
.figures { display: flex; flex-wrap: wrap; gap: 12px 28px }
figure, .wide { margin: 8px 0; overflow-x: auto } figcaption { font-weight: bold }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { text-align: left; vertical-align: top; padding: 3px 14px 3px 0; border-bottom: 1px solid #e3e7eb }
svg { display: block } .edge:hover path, .series:hover path { stroke-width: 3.5 }
"""


def write_report(run_dir):
    """Writes report.html: what the run's stages left so far, those that have not run named as such.

    The same files give the same bytes.

    Args:
      run_dir: `run_dir.RunDir`.

    Returns:
      The `pathlib.Path` of the report, which is written whole or not at all.

    Raises:
      RunDirError: where there is no config.json, or a file is damaged.
      GenotypeError: where genotype.json is refused.
    """
    run = read_run_files(run_dir)
    path = run_dir.file("report.html")
    write_bytes(path, _page(run).encode("utf-8"))
    return path


def _page(run):
    title = run.genotype.name if run.genotype else f"Run {run.name}"
    if run.is_empty:
        body = [element("p", "There is nothing to report yet: no stage has finished anything.", class_="absent"), sections.stages(run)]
    else:
        body = [sections.summary(run), sections.stages(run)]
        body += [element("section", element("h2", heading), build(run)) for heading, build in _SECTIONS]
    body.append(element("section", element("h2", "Configuration"), sections.configuration(run)))
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{element("h1", escape(title))}{"".join(body)}</body></html>\n'
