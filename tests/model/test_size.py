import pytest
from conftest import ARCHITECTURES, build_model

from minigpt.model.size import num_parameters


@pytest.mark.parametrize("switches", ARCHITECTURES, ids=str)
def test_number_of_parameters_is_that_of_the_model(switches):
    model = build_model(50, d_model=24, num_layers=3, d_ff=20, **switches)
    assert num_parameters(50, model.config) == model.num_parameters
