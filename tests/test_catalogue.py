from pathlib import Path

import pytest

from compllm.catalogue import default_catalogue_path, load_catalogue
from compllm.errors import ConfigError
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint

GOOD = """
out_of_domain = ["Who is it?"]
[base]
system = "Answer."
[adapters.chem]
id = 7
path = "adapters/chem"
[router]
threshold = 0.3
encoder = "e"
[[experts]]
name = "chemistry"
domain = "elements"
system = "You are a chemist."
adapter = "chem"
examples = ["What is iron?"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experts.toml"
    path.write_text(text)
    return path


def test_the_shipped_catalogue_is_good() -> None:
    catalogue = load_catalogue()
    assert catalogue.path == default_catalogue_path()
    assert [expert.name for expert in catalogue.experts] == ["chemistry", "biology", "mathematics"]
    assert all(len(examples) >= 15 for examples in catalogue.examples)
    assert catalogue.base.adapter_id is None


def test_shipped_adapters_have_the_ids_of_their_name_and_content(base_dir: Path) -> None:
    """Moved to another name after training, three of them had the old name's ids once: no engine
    was ready."""
    shape = validate_checkpoint(base_dir)
    for adapter in load_catalogue().adapters:
        assert adapter.path is not None
        assert adapter.id == read_peft(adapter.path, shape, adapter.name).task_id


def test_an_adapter_may_be_said_to_be_of_this_base(tmp_path: Path) -> None:
    text = GOOD.replace("id = 7", "id = 7\nsame_base = true")
    assert load_catalogue(write(tmp_path, text)).adapter("chem").is_same_base
    assert not load_catalogue(write(tmp_path, GOOD)).adapter("chem").is_same_base
    with pytest.raises(ConfigError, match=r"chem\.same_base = 'yes': expected true or false"):
        load_catalogue(write(tmp_path, text.replace("true", "'yes'")))


def test_an_expert_may_be_at_a_server_of_its_own(tmp_path: Path) -> None:
    there = 'url = "http://host:8000"\nmodel = "big"\nkey_env = "KEY"'
    catalogue = load_catalogue(write(tmp_path, GOOD.replace('adapter = "chem"', there)))
    (endpoint,) = catalogue.endpoints
    assert (endpoint.url, endpoint.model, endpoint.key_env) == ("http://host:8000", "big", "KEY")
    assert catalogue.expert("chemistry").model == endpoint.key == "big at http://host:8000 with KEY"
    for wrong, said in (
        (
            'adapter = "chem"\n' + there,
            "adapter = 'chem': expected no adapter, because the expert has a url",
        ),
        (there.replace("http:", "ftp:"), "url = 'ftp://host:8000': expected http://HOST:PORT"),
        ('url = "http://host"', r"model is missing"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_catalogue(write(tmp_path, GOOD.replace('adapter = "chem"', wrong)))


def test_an_expert_gets_its_adapters_id(tmp_path: Path) -> None:
    catalogue = load_catalogue(write(tmp_path, GOOD))
    expert = catalogue.expert("chemistry")
    assert (expert.adapter, expert.adapter_id, expert.model) == ("chem", 7, "tensorrt_llm")
    assert catalogue.adapter("chem").path == tmp_path / "adapters" / "chem"


def test_an_adapter_without_an_id_has_the_one_that_training_wrote(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("id = 7\n", ""))
    with pytest.raises(ConfigError, match=r"adapters.chem.path = .*: expected an 'id', or a lora"):
        load_catalogue(path)
    (tmp_path / "adapters" / "chem").mkdir(parents=True)
    (tmp_path / "adapters" / "chem" / "manifest.json").write_text('{"lora_task_id": 99}')
    assert load_catalogue(path).expert("chemistry").adapter_id == 99


def test_an_id_that_is_not_the_adapters_own_is_refused_with_the_right_one(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    (tmp_path / "adapters" / "chem").mkdir(parents=True)
    (tmp_path / "adapters" / "chem" / "manifest.json").write_text('{"lora_task_id": 99}')
    with pytest.raises(ConfigError, match=r"adapters.chem.id = 7: expected 99, as its manifest"):
        load_catalogue(path)


def test_generator_and_aggregator_may_have_adapters(tmp_path: Path) -> None:
    assert load_catalogue(write(tmp_path, GOOD)).generator is None
    roles = '[generator]\nadapter = "chem"\n[aggregator]\n[router]'
    catalogue = load_catalogue(write(tmp_path, GOOD.replace("[router]", roles)))
    assert catalogue.generator == catalogue.adapter("chem")
    assert catalogue.aggregator is None


def test_a_setting_may_name_another_adapter_or_the_base(tmp_path: Path) -> None:
    catalogue = load_catalogue(write(tmp_path, GOOD))
    assert catalogue.role_id("", None) is None
    assert catalogue.role_id("", catalogue.adapter("chem")) == 7
    assert catalogue.role_id("chem", None) == 7
    assert catalogue.role_id("base", catalogue.adapter("chem")) is None
    with pytest.raises(ConfigError, match="no adapter 'bio'"):
        catalogue.role_id("bio", None)


def test_a_trained_expert_needs_no_system_text(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace('system = "You are a chemist."\n', ""))
    assert load_catalogue(path).expert("chemistry").system == ""


def test_an_unknown_expert_is_an_error_that_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no expert 'x' .*: there are base, chemistry"):
        load_catalogue(write(tmp_path, GOOD)).expert("x")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "chemistry"', 'name = "Chemistry!"', r"experts\[1\].name = 'Chemistry!'"),
        ('name = "chemistry"', 'name = "base"', "experts = 'base': expected names used once"),
        ('name = "chemistry"', "", r"experts\[1\].name is missing"),
        ('adapter = "chem"', 'adapter = "bio"', "adapter = 'bio': expected one of chem"),
        ("id = 7", "id = 0", "adapters.chem.id = 0: expected an integer from 1"),
        ("id = 7", "id = true", "adapters.chem.id = True"),
        (
            "threshold = 0.3",
            "threshold = 2",
            "router.threshold = 2: expected a number from -1.0 to",
        ),
        ("threshold = 0.3", "", "router.threshold = None"),
        ('examples = ["What is iron?"]', "examples = []", "at least one example"),
        ('examples = ["What is iron?"]', "examples = [1]", "expected a list of texts"),
        ('domain = "elements"', 'domain = "elements"\nrank = 3', r"unknown key experts\[1\].rank"),
        ("[base]\n", '[base]\ntemplate = "x"\n', "base.template = 'x': expected one of chatml"),
        ("[router]", "[rooter]", "router is missing"),
        (
            "[router]",
            '[generator]\nadapter = "x"\n[router]',
            "generator.adapter = .x.: expected o",
        ),
        ('system = "Answer."', "system = 3", "base.system = 3: expected text"),
        ("[adapters.chem]", "[adapters.other]\nid = 7\n[adapters.chem]", "no other adapter has"),
    ],
)
def test_an_error_names_file_key_and_value(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=rf"experts.toml: .*{says}"):
        load_catalogue(write(tmp_path, GOOD.replace(old, new, 1)))
