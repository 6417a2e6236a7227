"""References from the guides of infra/ to recipes, files and each other."""

import re
from pathlib import Path

import pytest
import yaml

from tests.infra.required_tools import INFRA
from tests.support.paths import ROOT

pytestmark = pytest.mark.infra
GUIDES = sorted(INFRA.rglob("README.md"))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.parent.relative_to(ROOT)))
def test_guide_champion_is_registered_by_its_recipe(guide: Path) -> None:
    text = guide.read_text()
    recipes = set(re.findall(r"search_spaces/\w+\.yaml", text))
    assert recipes
    registered = {f"models:/{each['model']}@{each['alias']}" for each in map(_registry, recipes)}
    pulled = set(re.findall(r"models:/[\w-]+@\w+", text))
    assert pulled and pulled <= registered


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.parent.relative_to(ROOT)))
def test_guide_names_existing_files(guide: Path) -> None:
    text = guide.read_text()
    paths = set(re.findall(r"(?:tests/infra|infra|search_spaces)/[\w./-]+\w", text))
    for path in paths - {"infra/compose/secrets"}:
        place = ROOT / path
        assert place.exists() or "compose/secrets/" in path or path.endswith("/.env"), path
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (guide.parent / link).exists(), link


def _registry(recipe: str) -> dict[str, str]:
    registry: dict[str, str] = yaml.safe_load((ROOT / recipe).read_text())["registry"]
    return {"alias": "champion"} | registry
