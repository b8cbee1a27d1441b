from pathlib import Path

import pytest

from compllm.config import Config, load_config
from compllm.errors import ConfigError


def test_defaults_need_nothing() -> None:
    assert load_config(environ={}) == Config()


def test_overrides_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    path = tmp_path / "compllm.toml"
    path.write_text("[limits]\nmax_nodes = 1\nmax_depth = 1\nmax_line_chars = 100\n")
    environ = {"COMPLLM_LIMITS_MAX_NODES": "2", "COMPLLM_LIMITS_MAX_DEPTH": "2"}
    limits = load_config(path, {"limits.max_nodes": 3}, environ).limits
    assert (limits.max_nodes, limits.max_depth, limits.max_line_chars) == (3, 2, 100)
    assert limits.max_node_tokens == Config().limits.max_node_tokens


def test_an_unset_option_overrides_nothing() -> None:
    environ = {"COMPLLM_SERVER_URL": "host:1"}
    assert load_config(overrides={"server.url": None}, environ=environ).server.url == "host:1"


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "compllm.toml"
    path.write_text('catalogue = "other.toml"')
    assert load_config(environ={"COMPLLM_CONFIG": str(path)}).catalogue == "other.toml"


def test_text_of_the_environment_becomes_the_fields_type() -> None:
    environ = {
        "COMPLLM_GENERATOR_IS_GUIDED": "false",
        "COMPLLM_TIMEOUTS_PLAN_S": "3",
        "COMPLLM_COMPOSE_POLICY": "never",
    }
    config = load_config(environ=environ)
    assert config.generator.is_guided is False
    assert config.timeouts.plan_s == 3.0
    assert config.compose.policy == "never"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[limits]\nmax_node = 1", "'limits.max_node' in .*did you mean 'limits.max_nodes'"),
        ("[limits]\nmax_nodes = 0", "limits.max_nodes = 0 in .*: expected an integer from 1 to"),
        ("[limits]\nmax_nodes = 2.5", "expected an integer"),
        ("[limits]\nmax_nodes = true", "expected an integer"),
        ('[limits]\nmax_nodes = "2x"', "expected an integer"),
        ("[timeouts]\nplan_s = nan", "expected a number from"),
        ('[compose]\npolicy = "sometimes"', "expected one of always, auto, never"),
        ("limits = 3", "unknown setting 'limits'"),
        ("[nonsense]\nx = 1", "unknown setting 'nonsense.x'"),
        ("[limits", "is not TOML"),
    ],
)
def test_a_bad_file_is_an_error_that_names_key_and_value(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "compllm.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_config(path, environ={})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml"):
        load_config(tmp_path / "absent.toml", environ={})


def test_an_unknown_variable_is_an_error_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="COMPLLM_SERVER_URI; did you mean 'COMPLLM_SERVER_URL'"):
        load_config(environ={"COMPLLM_SERVER_URI": "x"})


def test_the_cache_directory_is_no_setting() -> None:
    assert load_config(environ={"COMPLLM_HOME": "/tmp/x", "HOME": "/"}) == Config()
