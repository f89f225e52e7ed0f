"""Digests and hashes are functions of content. Folders of runs and caches are named by them."""

import os

from mirai_bench.utils.hashing import digest, file_sha256


def test_the_form_of_a_digest_never_changes():
    assert digest({"b": [1, 2.5, None], "a": "λ"}) == "a6b0cfeb7847"
    assert digest({"a": "λ", "b": [1, 2.5, None]}) == "a6b0cfeb7847"


def test_a_file_that_changes_is_hashed_again(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    first = file_sha256(file)
    assert first == "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    file.write_bytes(b"2")
    os.utime(file, ns=(1, 1))
    assert file_sha256(file) != first


def test_a_folder_is_its_files_with_their_names(tmp_path):
    hashes = set()
    for folder, name in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / name).write_bytes(b"1")
        hashes.add(file_sha256(tmp_path / folder))
    assert len(hashes) == 2
