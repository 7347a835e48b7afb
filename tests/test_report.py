"""The page that an evaluation writes."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from colours import ColourEncoder, write_benchmark, write_lines
from umarvel_hf.data import MBeir
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.results import Comparison
from umarvel_hf.report import PICTURE_MAX_PIXELS, bars, picture, write_report

VOID = {"meta", "img", "br", "line", "rect"}


class Page(HTMLParser):
    """Collects tags and attributes, and checks that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class SeesNothing(ColourEncoder):
    """Takes every item for the same."""

    def _colour(self, item):
        return super()._colour("red")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_benchmark(tmp_path_factory.mktemp("colours"))
    path = root / "cand_pool/local/mbeir_plain_task3_cand_pool.jsonl"
    union = root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
    for file in (path, union):
        file.write_text(file.read_text().replace("a red square", "a <b>red</b> & <script>alert(1)</script> square"))
    return MBeir(root)


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    result = evaluate_benchmark(SeesNothing(), data, settings={"model": "blind <model>"})
    out = write_report(
        result, data, tmp_path_factory.mktemp("out") / "new/report.html", descriptions={"dark": "shades & co"}
    )
    return out.read_text(encoding="utf-8")


def test_the_page_stands_alone(page):
    tags = Page(page).found
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    assert not re.search(r"url\(|@import|https?:", page.replace("http://www.w3.org", ""))
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)


def test_what_comes_from_the_data_is_escaped(page):
    assert "&lt;script&gt;alert(1)" in page
    assert "blind &lt;model&gt;" in page
    assert "shades &amp; co" in page


def test_the_page_shows_successes_and_failures_with_right_answers_marked(page):
    tags = Page(page).found
    right = [attributes for tag, attributes in tags if tag == "figure" and "right" in attributes["class"].split()]
    examples = page.count('class="example"')
    assert len(right) == examples == 6  # all vectors tie: the first five dids are shown, the sixth is missed
    assert page.count("✓ missed") == page.count("no right answer among the first five") == 3
    assert page.count("first right answer at rank") == 3


def test_numbers_on_the_page_are_those_of_the_result(page, data):
    assert "83.3" in page  # five of six right answers are among the first five of a local pool of six
    assert "no difference shown" in page
    assert "Find its picture." in page


def test_the_same_result_gives_the_same_page(data, tmp_path):
    result = evaluate_benchmark(SeesNothing(), data)
    pages = [write_report(result, data, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_another_benchmark_is_refused(data, tmp_path):
    result = evaluate_benchmark(SeesNothing(), data)
    root = write_benchmark(tmp_path / "other")
    path = root / "query/test/mbeir_dark_task4_test.jsonl"
    write_lines(path, [line.replace('"2:', '"3:', 1) for line in path.read_text().splitlines()])
    with pytest.raises(ValueError, match=r"of dark_task4 is not in .*other. Pass the benchmark of this result"):
        write_report(result, MBeir(root), tmp_path / "report.html")


def test_bars_are_as_long_as_their_numbers():
    compared = Comparison("a", 10, model=0.5, baseline="B<M>25", baseline_score=0.25, p_value=0.001, p_holm=0.01)
    drawing = str(bars([compared], ["t → i"]))
    widths = {tag[1]["class"]: float(tag[1]["width"]) for tag in Page(drawing).found if tag[0] == "rect"}
    assert widths["ours"] == 2 * widths["best"]
    assert "50 ▲" in drawing
    assert "25 B&lt;M&gt;25" in drawing


def test_small_pictures_keep_their_bytes_and_large_ones_shrink(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "small.webp")
    Image.new("RGB", (900, 300), "red").save(tmp_path / "large.bmp")
    assert picture(tmp_path / "small.webp").startswith("data:image/webp;base64,")
    large = picture(tmp_path / "large.bmp")
    assert large.startswith("data:image/webp;base64,")
    assert len(large) < 1000 * PICTURE_MAX_PIXELS / 16
