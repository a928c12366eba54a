"""Model files as artifacts of DVC and GTO, fetched without a network."""

import pytest
from conftest import Project


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [("minigpt", "models/minigpt.onnx"), ("checkpoint", "models/minigpt.safetensors")],
)
def test_dvc_gets_a_registered_model(project: Project, tmp_path, name, file):
    project.run("gto", "register", name, "--version", "v1.0.0")
    elsewhere = Project.__new__(Project)
    elsewhere.root, elsewhere.env = tmp_path, project.env
    elsewhere.run("dvc", "artifacts", "get", str(project.root), name, "--out", "fetched")
    assert (tmp_path / "fetched").read_bytes() == (project.root / file).read_bytes()
