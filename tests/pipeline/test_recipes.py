import json

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from minigpt.common.config import Params
from minigpt.generation.onnx_backend import OnnxBackend

RECIPES = sorted((ROOT / "recipes").iterdir())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_override_is_a_valid_parameter(recipe):
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(ROOT / "params.yaml")
    for line in recipe.read_text().split():
        key, value = line.split("=")
        section, name = key.split(".")
        assert name in params[section]
        params[section][name] = yaml.load(value)
    Params.model_validate(params)


def test_classic_and_fast_override_the_same_keys():
    keys = [
        [line.split("=")[0] for line in (ROOT / "recipes" / name).read_text().split()]
        for name in ("classic", "fast")
    ]
    assert sorted(keys[0]) == sorted(keys[1])


@pytest.mark.slow
def test_the_fast_recipe_passes_all_stages(project):
    overrides = (ROOT / "recipes/fast").read_text().split()
    project.run("dvc", "exp", "run", *(part for override in overrides for part in ("-S", override)))
    assert (
        OnnxBackend(project.root / "models/minigpt.onnx").metadata["config"]["trigram_buckets"]
        == 1750
    )
    command = ["minigpt-cli", "generate", "--prompt", "Once", "--seed", "1", "--backend"]
    assert project.run(*command, "onnx") == project.run(*command, "torch")
    assert (
        json.loads((project.root / "reports/export.json").read_text())["max_logit_difference"]
        < 1e-4
    )
