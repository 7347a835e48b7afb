"""The documentation: its Python runs, its links lead somewhere, its reference is whole, it builds without a warning."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from PIL import Image

import umarvel_hf
from colours import COLOURS, write_benchmark, write_training_split
from foreign import CHECKOUT, WARNINGS_ARE_ERRORS
from hub_server import HubServer

DOCS = CHECKOUT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
IN_A_PROCESS = ("how-to/push.md", "how-to/many-gpus.md")  # asks a Hub; starts processes


def python_of(page):
    return re.findall(r"```python\n(.+?)```", page.read_text(), re.DOTALL)


def name_of(page):
    return page.relative_to(DOCS).as_posix()


@pytest.fixture
def desk(checkpoint, monkeypatch, tmp_path):
    """A folder where the files are that the pages name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "my-embedder")
    Path("pictures").mkdir()
    for name, colour in {"heart": "red", "cat": "yellow", "pictures/dog": "blue", "pictures/bench": "green"}.items():
        Image.new("RGB", (56, 56), COLOURS[colour]).save(f"{name}.png")
    write_training_split(write_benchmark(tmp_path / "my-data"))
    for path in [*Path("my-data/query/test").iterdir(), *Path("my-data/qrels/test").iterdir()]:
        validation = Path(str(path).replace("/test/", "/val/").replace("_test", "_val"))
        validation.parent.mkdir(exist_ok=True)
        shutil.copy(path, validation)
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if python_of(page) and name_of(page) not in IN_A_PROCESS], ids=name_of
)
def test_the_python_of_a_page_runs(page, desk, capsys):
    names = {"__name__": "page"}
    for number, block in enumerate(python_of(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_the_python_of_a_page_runs_in_a_process(name, desk):
    Path("page.py").write_text("\n".join(python_of(DOCS / name)))
    with HubServer() as hub:
        environment = os.environ | hub.environment(desk / "home")
        command = [sys.executable, *WARNINGS_ARE_ERRORS, "page.py"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if name == "how-to/push.md":
            assert {"me/from-a-folder", "me/from-an-object"} <= set(hub.repositories)


def commands_of(page, heading=""):
    """The lines of the first block of bash below a heading of a page."""
    block = page.read_text().partition(heading)[2] if heading else page.read_text()
    return block.partition("```bash\n")[2].partition("```")[0].splitlines()


@pytest.fixture
def shell(bases, tmp_path):
    """``shell(commands)``: what each prints, run in a folder with the examples and a Hub that has a tiny base."""
    (tmp_path / "home/pictures").mkdir(parents=True)
    (tmp_path / "examples").symlink_to(CHECKOUT / "examples")
    with HubServer() as hub:
        hub.fill("Qwen/Qwen2-VL-2B-Instruct", bases("qwen2_vl"))
        environment = os.environ | hub.environment(tmp_path / "hub")
        environment |= {"HOME": str(tmp_path / "home"), "UMARVEL_CACHE": str(tmp_path / "cache")}
        # A reader has a torchvision that works; here the examples may need the help that conftest.py gives the tests.
        (tmp_path / "python").mkdir()
        (tmp_path / "python/sitecustomize.py").write_text(
            "from umarvel_hf._torchvision import ensure_torchvision\n\nensure_torchvision()\n"
        )
        environment["PYTHONPATH"] = str(tmp_path / "python")
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

        def run(commands):
            told = []
            for command in commands:
                done = subprocess.run(
                    ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{command}\n{done.stderr}"
                told.append(done.stdout)
            return told

        yield run


def write_pairs(folder, count):
    """``pairs.csv``, and its pictures in the home's folder."""
    lines = ["text,image"]
    for at in range(count):
        colour = (200 * at // count, 90, 200 - 150 * at // count)
        Image.new("RGB", (64, 48), colour).save(folder / f"home/pictures/{at}.png")
        lines.append(f"picture number {at},home/pictures/{at}.png")
    (folder / "pairs.csv").write_text("\n".join(lines))


@pytest.mark.slow
def test_a_newcomer_searches_a_folder_and_fine_tunes_on_ten_pairs_with_the_readmes_commands(shell, tmp_path):
    commands = commands_of(CHECKOUT / "README.md", "## Search your own pictures")
    assert len(commands) == 4  # after the one that installs
    write_pairs(tmp_path, 10)
    encoded, found, _, trained = shell(commands)
    assert "10 items of 128 dimensions in my-vectors" in encoded
    assert len(found.splitlines()) == 5 and all(line.endswith(".png") for line in found.splitlines())
    assert re.search(r"R@1 on 1 held-out pairs: \d+\.\d% before, \d+\.\d% after", trained)


@pytest.mark.slow
def test_own_pairs_are_mined_and_a_reranker_distilled_with_the_pages_commands(shell, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "my-embedder")
    write_pairs(tmp_path, 20)
    mined, distilled = commands_of(DOCS / "how-to/mine.md"), commands_of(DOCS / "how-to/distil.md")
    search, rerank, _ = commands_of(DOCS / "how-to/distil.md", "Without any training of the embedder")
    *_, harder = shell(mined)
    assert re.search(r"R@1 in the local pool: .+ before, .+ after", harder)
    _, student = shell(distilled)
    assert re.search(r"R@1 in the test: .+ before, .+ after", student)
    _, _, judged = shell(["umarvel encode ~/pictures my-vectors --model my-embedder", search, rerank])
    assert len(judged.splitlines()) == 5
    assert (tmp_path / "my-harder-embedder/model/config.json").is_file()
    assert (tmp_path / "my-distilled-embedder/model/config.json").is_file()


@pytest.mark.parametrize("page", [CHECKOUT / "README.md", *PAGES], ids=lambda page: page.name)
def test_a_page_leads_to_what_is_there(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (page.parent / target).exists(), target
        inside = DOCS not in page.parents or (page.parent / target).resolve().is_relative_to(DOCS)
        assert inside, f"{target} is not part of the site"
    for names in re.findall(r"^from umarvel_hf import (.+)$", text, re.MULTILINE):
        assert set(names.split(", ")) <= set(umarvel_hf.__all__)


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference_once():
    listed = re.findall(r"[\w/-]+\.md", (CHECKOUT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    assert sorted(listed) == sorted(map(name_of, PAGES))
    told = [
        entry.rpartition(".")[2]
        for page in (DOCS / "reference").glob("*.md")
        for entry in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    assert len(told) == len(set(told))
    travelling = {"UMarvelConfig", "UMarvelModel", "UMarvelOutput", "UMarvelTransformer"}  # with a checkpoint
    assert set(told) == set(umarvel_hf.__all__) | travelling | {"MtebEncoder"}  # which needs mteb


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr.replace("NO_MKDOCS_2_WARNING", "")
    return out


def test_the_site_builds_without_a_warning_and_asks_no_other(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == len(PAGES) + 1  # and that of what is not found
    for page in pages:
        fetched = re.findall(r'<(?:script|link|img)[^>]+?(?:src|href)="?(https?:[^" >]+)', page.read_text())
        assert [one for one in fetched if "canonical" not in one] == [], page.name
    verbs = (site / "reference/command-line.html").read_text()
    for verb in ("demo", "doctor", "push"):
        assert f'<h2 id="{verb}">' in verbs
    assert "&lt;mean&#124;stored&gt;" in verbs and "\\|" not in verbs
    for page in (site / "reference").glob("*.html"):  # docstrings point where a reader of the site cannot go
        assert re.search(r":(?:class|func|meth|mod):|recipe\.md|§", page.read_text()) is None, page.name


LOOK = """<body style="margin:0">
<iframe style="width:{width}px;height:3000px;border:0" src="{page}"></iframe><p></p><script>
onload = () => setTimeout(() => {{
  const page = document.querySelector("iframe").contentDocument
  const wide = [...page.querySelectorAll("article *")].filter(one => {{
    const clipped = one.closest("pre, table, .md-typeset__scrollwrap, .highlight, code")
    return !clipped && one.getBoundingClientRect().right > {width} + 1
  }})
  const broken = [...page.images].filter(one => !one.naturalWidth)
  document.querySelector("p").textContent = JSON.stringify(
    [page.documentElement.scrollWidth, wide.map(one => one.outerHTML.slice(0, 80)), broken.map(one => one.src)])
}}, 300)</script>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window_or_has_a_broken_picture(site, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    for page in sorted(site.rglob("*.html")):
        if page.name == "404.html":  # its links are absolute
            continue
        look = tmp_path / "look.html"
        look.write_text(LOOK.format(width=width, page=page.as_uri()))
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--allow-file-access-from-files", "--virtual-time-budget=4000", "--dump-dom", look.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        found = yaml.safe_load(re.search(r"<p>(.+)</p>", shown)[1].replace("&lt;", "<").replace("&gt;", ">"))
        assert found == [width, [], []], page.name
