"""The bundled stories are what their generator writes."""

from pathlib import Path

from modules import load_file

SAMPLES = Path(__file__).resolve().parents[3] / "gpt_scratch" / "data" / "samples"


def test_the_bundled_file_is_what_the_generator_writes(capsys):
    stories = load_file(SAMPLES / "make_stories.py")
    stories.main()
    assert capsys.readouterr().out == (SAMPLES / "stories.jsonl").read_text(encoding="utf-8")
    stories.main(count=9, seed=2)
    assert capsys.readouterr().out.splitlines()[0] not in (SAMPLES / "stories.jsonl").read_text(encoding="utf-8")
