"""What stands at a path."""

import os

from memtool.paths import is_special


def test_pipes_and_devices_are_special_but_no_file_folder_or_impossible_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link", "/dev/null"):
        assert is_special(tmp_path / name)
    for name in ("file", "", "nothing", "a" * 1000):
        assert not is_special(tmp_path / name)
