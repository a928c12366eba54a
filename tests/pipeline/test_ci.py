import pytest


@pytest.mark.slow
def test_metrics_of_a_change_are_compared_with_its_base(project):
    project.edit("params.yaml", "d_model: 32", "d_model: 16")
    project.run("git", "switch", "--quiet", "--create", "narrow")
    project.commit()
    out = project.run(".ci/metrics", "main").partition("### Parameters")
    rows = [[cell.strip() for cell in line.split("|")] for line in out[0].splitlines()]
    (before, after, difference) = next(row[3:6] for row in rows if "loss" in row)
    assert float(after) - float(before) == pytest.approx(float(difference), abs=1e-4)
    assert float(difference) > 0
    assert "| model.d_model | 32 | 16 |" in " ".join(out[2].split())
    assert project.run("git", "status", "--porcelain") == ""
    assert project.run("git", "branch", "--show-current") == "narrow\n"
    project.edit("params.yaml", "d_model: 16", "d_model: 8")
    assert "commit them first" in project.run(".ci/metrics", "main", code=1)
    assert "d_model: 8" in (project.root / "params.yaml").read_text()
