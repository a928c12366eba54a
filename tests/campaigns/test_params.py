"""Campaign: params.yaml with values of any kind is loaded, or refused with the name of a key."""

import json
from pathlib import Path

import pytest
from campaign import check_cases
from conftest import PARAMS
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from minigpt.common.config import Params, load_params
from minigpt.common.errors import UserError

EXAMPLES = 25  # of a case
REDUCED, FULL = 4, 2000
SECTIONS = {
    section: {key: json.dumps(value) for key, value in values.items()}
    for section, values in PARAMS.model_dump(exclude={"threads"}).items()
}
SINGLE = {"threads": json.dumps(PARAMS.threads)}  # keys outside of the sections
KEYS = [(section, key) for section, values in SECTIONS.items() for key in (*values, "unknown")]
KEYS += [("", key) for key in SINGLE]

# values as YAML texts: extreme numbers, tags that fit or not, anchors, and syntax errors
LIMITS = [0, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**308, 10**400, 10**4000]
FLOATS = ".nan .inf -.inf 1e308 1e309 1e-400 -0.0 1_000 0x1f 0o17 1:30 2001-99-99"
TAGS = "!!int '' | !!bool x | !!float x | !!null x | !!str 3 | !!set {a} | !a 3 | !!python/name:a b"
SYNTAX = "*no | &a [*a] | <<: 3 | [ | { | } | ' | > | % | @ | ? | - | : | null | true | auto | ''"
integers = st.integers() | st.sampled_from([*LIMITS, *(-limit for limit in LIMITS)])
scalars = st.one_of(
    integers.map(str),
    st.floats().map(str),
    st.sampled_from(FLOATS.split()),
    st.sampled_from(TAGS.split(" | ")),
    st.sampled_from(SYNTAX.split(" | ")),
    st.text().map(json.dumps),
    st.text(st.characters(exclude_characters="\n\r\x85\u2028\u2029")),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(scalars, inner, max_size=3).map(
            lambda items: f"{{{', '.join(f'{key}: {value}' for key, value in items.items())}}}"
        ),
    ),
    max_leaves=5,
)
nested = st.integers(1, 400).map(lambda depth: "[" * depth + "]" * depth)
changes = st.dictionaries(
    st.sampled_from(KEYS), scalars | values | nested | st.none(), min_size=1, max_size=2
)


def to_yaml(changed: dict[tuple[str, str], str | None]) -> bytes:
    """Return params.yaml with changed values; None removes a key."""
    single = {key: value for (section, key), value in changed.items() if not section}
    lines = [f"{key}: {value}" for key, value in {**SINGLE, **single}.items() if value is not None]
    for section, values in SECTIONS.items():
        named = {key: value for (other, key), value in changed.items() if other == section}
        lines.append(f"{section}:")
        lines += [
            f"  {key}: {value}" for key, value in {**values, **named}.items() if value is not None
        ]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def load(path: Path, changed: dict[tuple[str, str], str | None]) -> bool:
    """Return whether the changed parameters are valid; otherwise, the message says what is not."""
    path.write_bytes(to_yaml(changed))
    try:
        params = load_params(path)
    except UserError as error:
        message = str(error)
    else:
        assert Params(**params.model_dump()) == params
        return True
    sections = [f"{path}: {section or key}" for section, key in changed]
    assert message.startswith((f"{path}: not valid YAML: ", *sections))
    assert message.isprintable()
    return False


def run_case(number: int, folder: Path) -> str:
    outcomes = {True: 0, False: 0}

    @seed(number)
    @settings(max_examples=EXAMPLES, database=None)
    @given(changes)
    def check(changed: dict[tuple[str, str], str | None]) -> None:
        outcomes[load(folder / "params.yaml", changed)] += 1

    check()
    assert outcomes[False] > 0
    return "all loaded or refused"


@pytest.mark.slow
def test_params_are_loaded_or_refused_by_key(numbers, campaign_folder):
    check_cases(run_case, numbers, campaign_folder)
