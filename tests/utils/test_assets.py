"""Files that a user downloads are found in machine.assets, or where the environment says."""

from mirai_bench.utils.assets import assets_folder, find_asset, shipped


def test_the_config_wins_over_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAI_BENCH_ASSETS", str(tmp_path / "variable"))
    assert assets_folder(tmp_path) == tmp_path
    assert assets_folder(None) == tmp_path / "variable"
    monkeypatch.setenv("MIRAI_BENCH_ASSETS", "")
    assert assets_folder(None) is None
    assert find_asset(None, "weights.pth") is None


def test_the_first_name_that_is_there_is_found(tmp_path):
    for name in ("b", "c"):
        (tmp_path / name).touch()
    assert find_asset(tmp_path, "a", "b", "c") == tmp_path / "b"
    assert find_asset(tmp_path, "a") is None


def test_the_project_ships_its_sweeps_and_the_papers_values():
    assert (shipped("sweeps") / "injection_level.yaml").is_file()
    assert shipped("reports", "data", "paper_values.csv").is_file()
