import argparse
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines.base import UserError
from data_pipelines.opt_out import read_opt_out
from data_pipelines.shards import Dataset
from launch.data_commands import add_parser
from launch.progress import Progress


def thalweg(*words):
    """Exit code of `thalweg data ...`."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    options = parser.parse_args(["data", *map(str, words)])
    return options.run(options)


@pytest.fixture
def pictures(tmp_path):
    """30 pictures in two class folders."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for number in range(15):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
            (tmp_path / "in" / label / f"{number}.png").write_bytes(file.getvalue())
    return tmp_path / "in"


def test_pack_check_show_and_index_go_together(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert thalweg("pack", "imagefolder", pictures, out, "samples_per_shard=10", "--val-fraction", "0.2") == 0
    assert f"{out}/train: " in capsys.readouterr().out
    train, val = (Dataset.open(str(out / split)) for split in ("train", "val"))
    assert train.num_samples + val.num_samples == 30
    assert 0 < val.num_samples < 15
    assert train.shard_sizes[0] == 10

    assert thalweg("check", out / "train", "--all") == 0
    assert "verdict      whole" in capsys.readouterr().out

    assert thalweg("show", out / "train", "--count", 9, "--out", tmp_path / "sheet.png") == 0
    assert f"{train.key(0, 0)!r}: png" in capsys.readouterr().out
    assert Image.open(tmp_path / "sheet.png").size == (3 * 96, 3 * 96)

    (out / "train" / "manifest.json").unlink()
    assert thalweg("index", out / "train") == 0
    assert Dataset.open(str(out / "train")).num_samples == train.num_samples


def test_near_writes_keys_that_opt_out_reads(pictures, tmp_path, capsys):
    (pictures / "dog" / "copy.png").write_bytes((pictures / "cat" / "3.png").read_bytes())
    thalweg("pack", "imagefolder", pictures, tmp_path / "out", "val_fraction=0", "name=pets")
    assert thalweg("near", tmp_path / "out" / "train", "--bits", 0, "--keys", tmp_path / "keys.txt") == 0
    assert "1 look like an earlier one: " in capsys.readouterr().out
    opt_out = read_opt_out(str(tmp_path / "keys.txt"))
    assert len(opt_out) == 1 and opt_out.of("pets-train") < {"cat/3", "dog/copy"} and not opt_out.of("others")
    with pytest.raises(UserError, match="no readable sample for the split 'train'; 31 were left out by exclude_near"):
        excluded = ("--exclude-near", tmp_path / "out" / "train")
        thalweg("pack", "imagefolder", pictures, tmp_path / "clean", "val_fraction=0", *excluded)


def test_check_of_a_damaged_set_fails_and_fix_mends_its_index(pictures, tmp_path, capsys):
    thalweg("pack", "imagefolder", pictures, tmp_path / "out", "val_fraction=0")
    (tmp_path / "out" / "train" / "train-000000.tar.index").unlink()
    assert thalweg("check", tmp_path / "out" / "train") == 1
    assert thalweg("check", tmp_path / "out" / "train", "--fix") == 0
    assert thalweg("check", tmp_path / "out" / "train") == 0
    assert "fixed        index of train-000000.tar was made anew" in capsys.readouterr().out


def test_paths_may_hold_anything_but_an_assignment(pictures, tmp_path):
    out = tmp_path / "a b=c 'd'"
    assert thalweg("pack", "imagefolder", pictures, out, "val_fraction=0") == 0
    assert Dataset.open(str(out / "train")).num_samples == 30


def test_wrong_words_are_the_users_mistake(pictures, tmp_path):
    with pytest.raises(UserError, match="got 3 paths"):
        thalweg("pack", "imagefolder", pictures, "b", "c")
    with pytest.raises(UserError, match="did you mean 'shard_bytes'"):
        thalweg("pack", "imagefolder", pictures, tmp_path / "out", "shard_byte=3")
    with pytest.raises(UserError, match="no such file or folder"):
        thalweg("check", tmp_path / "nowhere")
    with pytest.raises(UserError, match="no images among"):
        (tmp_path / "text.txt").write_text("river\n\nvalley\n")
        thalweg("pack", "text", tmp_path / "text.txt", tmp_path / "text", "vocabulary_size=64", "val_fraction=0")
        thalweg("show", tmp_path / "text" / "train", "--out", tmp_path / "sheet.png")


def test_plan_tells_steps_before_anything_runs(pictures, tmp_path, capsys):
    thalweg("pack", "imagefolder", pictures, tmp_path / "out", "val_fraction=0")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        f"objective: {{name: mae}}\ndata: {{path: '{tmp_path}/out/train'}}\ntrain: {{global_batch: 8, epochs: 2}}\n"
    )
    capsys.readouterr()
    assert thalweg("plan", recipe, "--world-size", 2) == 0
    words = capsys.readouterr().out
    assert "steps        8 of 8 samples" in words
    assert "ranks        2; legal: 1, 2, 4, 8" in words
    with pytest.raises(UserError, match="world_size=3"):
        thalweg("plan", recipe, "--world-size", 3)


@pytest.mark.slow
def test_check_and_bench_tell_whether_a_model_will_be_fed(pictures, tmp_path, capsys):
    thalweg("pack", "imagefolder", pictures, tmp_path / "out", "val_fraction=0")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "objective: {name: mae, encoder: {architecture: vit, patch_size: 4, hidden_size: 8, num_hidden_layers: 1, "
        "num_attention_heads: 1, intermediate_size: 8}, decoder: {hidden_size: 8, num_hidden_layers: 1, "
        "num_attention_heads: 1, intermediate_size: 8}}\n"
        f"data: {{path: '{tmp_path}/out/train', validation: not/here}}\ntrain: {{global_batch: 8, epochs: 2}}\n"
    )
    capsys.readouterr()
    assert thalweg("check", tmp_path / "out" / "train", "--recipe", recipe, "--gpu-samples-per-s", "0.1") == 0
    words = capsys.readouterr().out
    assert "lanes        8 of 3 or 4 samples" in words
    assert "feeding      your GPUs will not starve: it takes data.workers=1" in words
    assert thalweg("bench", recipe, "--seconds", "0.01", "--gpu-samples-per-s", "1e12") == 0
    *_, row, last = capsys.readouterr().out.splitlines()
    assert row.split()[-1] == "100%"
    assert last.startswith("choose       data.workers=") and "a GPU WILL STARVE" in last
    with pytest.raises(UserError, match="say which, --recipe"):
        thalweg("check", tmp_path / "out" / "train", "--gpu", "h100")


def test_a_plan_for_ten_billion_samples_takes_little_memory_and_no_torch(tmp_path):
    words = ["data", "plan", "mae_vitb16", "train.global_batch=16384", "--world-size", "4096", "--simulate"]
    words += ["--samples", "1e10", "--shards", "1e6", "--sample-bytes", "1e5", "--step-seconds", "0.5"]
    program = (
        "import sys\n"
        "from launch.cli import main\n"
        f"code = main({words!r})\n"
        "[peak] = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"  # ru_maxrss is inherited
        "print('torch' in sys.modules, peak.split()[1], code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *plan, last = done.stdout.splitlines()
    assert "steps        976,562,500 of 16,384 samples, 5,651.40 days of 0.5 s a step" in plan
    assert any(line.startswith("shuffle      a step reaches 98") for line in plan)
    has_torch, kilobytes, code = last.split()
    assert (has_torch, code) == ("False", "0")
    assert int(kilobytes) < 200_000


def test_progress_off_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("launch.progress.PLAIN_LINE_EVERY_S", 0.0)
    with Progress() as progress:
        progress("pack", 5, 10)
        progress("pack", 10, 10)
    assert capsys.readouterr().err.splitlines() == ["pack: 5 of 10", "pack: 10 of 10, about 0 s left"]
