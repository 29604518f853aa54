"""What is covered, recorded and claimed: each published number is counted once, each record is what its id says, each claim names rows that exist."""

import csv
import json
import shutil

import pytest
from imports import PACKAGE, ROOT

from irstd_nb.cli import main
from irstd_nb.core.files import read_json, write_json
from irstd_nb.core.params import load_params
from irstd_nb.differences import findings, read_code, read_ledger, to_markdown
from irstd_nb.reporting.claims import CLAIMS, Contrast, Sources, compared, ledger, verdict
from irstd_nb.reporting.coverage import coverage
from irstd_nb.reporting.record import check_records, record_folders, record_id

PARAMS = load_params(ROOT / "params.yaml")
RUNS, RECORDED = ROOT / "runs" / PARAMS["profile"], ROOT / "reports/recorded"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    "A clone with one record and the finished runs of one method, and the working folder in it."
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(RECORDED / "tophat-nuaa-sirst", tmp_path / "reports/recorded/tophat-nuaa-sirst")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- coverage ----------------------------------------------------------------------------------------------------------------------------


def test_coverage_counts_all_873_published_numbers(clone, capsys):
    assert main(["coverage", "--csv", "numbers.csv"]) == 0
    said = capsys.readouterr().out
    lines = list(csv.DictReader((clone / "numbers.csv").open(encoding="utf-8")))
    covered = [line for line in lines if "True" in (line["pipeline"], line["recorded"])]
    assert len(lines) == 873 and f"{len(covered)} of 873 published numbers have a counterpart" in said
    assert {(line["row"], line["dataset"]) for line in covered} >= {("Top-Hat", "NUAA-SIRST")} and all(line["row"] != "ACM" or line["metric"] in ("params_m", "gflops") for line in covered)


def test_every_number_without_a_counterpart_has_a_reason():
    frame = coverage(PARAMS["tables"], RUNS, RECORDED)
    assert set(frame.why) <= {"", "no method", "no finished run", "not measured"}
    assert ((frame.why == "") == (frame.pipeline | frame.recorded)).all()


def test_every_row_of_a_table_in_params_yaml_names_a_run_that_is_planned():
    planned = {name for kind in ("classical", "networks", "parts", "detectors") for name in PARAMS.get(kind, {})}
    unknown = [f"{name}: {run}" for name, spec in PARAMS["tables"].items() for run in spec["rows"].values() if run not in planned]
    assert not unknown, unknown


# --- records -----------------------------------------------------------------------------------------------------------------------------


def test_every_record_is_what_its_id_and_its_counts_say():
    assert check_records(RECORDED) == []


def test_no_record_names_an_image_folder_or_holds_anything_but_numbers():
    kinds = {path.suffix for folder in record_folders(RECORDED) for path in folder.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".csv", ".md", ".safetensors", ""}


def test_a_changed_number_is_found(clone, capsys):
    assert main(["record", "reports/recorded/tophat-nuaa-sirst"]) == 0 and main(["record", "--check"]) == 0
    path = clone / "reports/recorded/tophat-nuaa-sirst/metrics.json"
    path.write_text(path.read_text().replace('"iou": 0.', '"iou": 0.9', 1))
    capsys.readouterr()
    assert main(["record", "--check"]) == 1
    said = capsys.readouterr().out
    assert "was changed since its id was given" in said and "iou is 0.9" in said and "2 findings" in said


def test_a_finished_run_becomes_a_record_of_numbers_only(clone, capsys):
    shutil.move(clone / "reports/recorded/tophat-nuaa-sirst", clone / "work")
    (clone / "work/map.png").write_bytes(b"picture")
    assert main(["record", "work", "--as", "mine"]) == 0
    made = clone / "reports/recorded/mine"
    assert capsys.readouterr().out.strip() == f"mine: {record_id(made)}" and read_json(clone / "reports/recorded/ids.json") == {"mine": record_id(made)}
    assert {path.name for path in made.iterdir()} == {"run.json", "metrics.json", "counts.csv", "COMMAND", "record.json"}


@pytest.mark.parametrize("words", [[], ["--check", "work"], ["a", "b", "--as", "c"], ["nowhere"]], ids=" ".join)
def test_a_wrong_call_is_answered_in_one_line(clone, capsys, words):
    assert main(["record", *words]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.strip().splitlines()) == 1 and ";" in said.err


# --- claims ------------------------------------------------------------------------------------------------------------------------------


def test_every_claim_names_rows_metrics_and_sets_that_are_printed():
    for claim in CLAIMS:
        for test in claim.tests:
            if isinstance(test, Contrast):
                rows, others, datasets = compared(claim, test)
                assert rows and others and datasets


def test_without_any_run_no_claim_is_tested(tmp_path):
    entries = ledger(Sources(PARAMS["tables"], tmp_path / "runs", tmp_path / "recorded"))
    assert len(entries) == len(CLAIMS) and {verdict(results) for _, results in entries} == {"not tested yet"}


def test_simulated_runs_never_decide_a_claim(tmp_path):
    spec = PARAMS["tables"]["sirst5k-V"]
    for i, run in enumerate(spec["rows"].values()):
        home = tmp_path / "runs" / run / "NUDT-SIRST/s0"
        write_json(home / "run.json", {"run": run, "dataset": "NUDT-SIRST", "seed": 0, "kind": "network", "data": {"name": "sim-nudt", "simulated": True}})
        write_json(home / "metrics.json", {"iou": 0.5 + 0.1 * i, "pd": 0.5 + 0.1 * i, "fa": 1e-5 / (i + 1)})
    found = {claim.id: verdict(results) for claim, results in ledger(Sources(PARAMS["tables"], tmp_path / "runs", tmp_path / "recorded"))}
    assert found["sirst5k-parts"] == found["sirst5k-aff"] == "undecided, simulated stand-in"
    assert json.loads((home / "run.json").read_text())["data"]["simulated"]  # what decided


# --- the ledger of differences -----------------------------------------------------------------------------------------------------------


def test_no_difference_names_a_switch_or_a_default_that_the_code_has_left_behind():
    assert findings(read_ledger((ROOT / "DIFFERENCES.md").read_text(encoding="utf-8")), read_code(ROOT / PACKAGE)) == []


def test_the_page_of_differences_is_what_ledger_and_code_say():
    made = to_markdown(read_ledger((ROOT / "DIFFERENCES.md").read_text(encoding="utf-8")), read_code(ROOT / PACKAGE))
    assert (ROOT / "reports/differences.md").read_text(encoding="utf-8") == made, "run python -m irstd_nb.differences"
