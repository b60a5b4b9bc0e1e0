"""Progress that nobody sees."""

from memtool.progress import silent, unseen


def test_silence(capsys):
    with silent("work", 3) as advance:
        advance()
        advance(2, description="more")
    unseen(5)
    assert capsys.readouterr() == ("", "")
