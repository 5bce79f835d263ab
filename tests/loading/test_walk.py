"""How many files a reader visits who follows one model's loading, as docs/architecture.md does."""

import re
from collections import Counter

import pytest

import model_loader
from loading.selection import select
from tests.support.demo_worker import demo_settings
from tests.support.tiny_families import FAMILIES, write_family
from tests.support.walks import stays
from tests.support.weight_files import empty_caches, storage
from tools.documents import read

STEP = re.compile(r"`(model_loader\.py|loading/\w+\.py)`:\s+((?:`[\w.]+`(?:,\s+)?)+)")


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The stays in `model_loader.py` and `loading/` of a load of Qwen 3 from the cache."""
    family, caches = FAMILIES["Qwen 3"], empty_caches(tmp_path_factory.mktemp("caches"))
    write_family(storage(caches).caches[-1].path, family)
    settings = demo_settings(
        model_id=family.model, transcoder_set=family.transcoder_set, model_engine=None, **caches
    )
    select.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_loader, "_loaded", None)
        return stays(lambda: model_loader.get_model(settings), ("model_loader.py", "loading/"))


def test_it_is_short(walked):
    assert len(walked) <= 21
    assert max(Counter(file for file, _ in walked).values()) <= 3


def test_the_documents_name_each_stay_in_its_order(walked):
    text = read("docs/architecture.md").split("## One model's loading")[1].split("\n## ")[0]
    named = [(file, re.findall(r"`([\w.]+)`", names)) for file, names in STEP.findall(text)]
    assert [file for file, _ in named] == [file for file, _ in walked]
    for (file, names), (_, called) in zip(named, walked, strict=True):
        assert set(names) <= set(called), file
    files = len({file for file, _ in walked})
    assert f"{len(walked)} stays in {files} files" in " ".join(text.split())
