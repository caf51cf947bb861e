"""The files for `accelerate launch` are what accelerate reads: known keys, values it takes, this model's names."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.dataclasses import DistributedType

from gpt_scratch import GPTScratchForCausalLM

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "configs" / "accelerate"
PROCESSES = {"cpu": 2, "gpus": 8, "machines": 64, "fsdp2": 8, "deepspeed": 8}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_file(file, monkeypatch):
    monkeypatch.setattr("accelerate.commands.launch.is_deepspeed_available", lambda: True, raising=False)
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    config = load_config_from_file(str(file))  # refuses unknown keys
    assert config.num_processes == PROCESSES[file.stem]
    parser = launch_command_parser()
    options = {action.dest for action in parser._actions}
    for section in ("fsdp_config", "deepspeed_config"):
        assert settings.get(section, {}).keys() <= options  # of which it says nothing
    arguments, *_ = _validate_launch_command(parser.parse_args(["--config_file", str(file), "scripts/pretrain.py"]))
    assert (arguments.num_processes, arguments.num_machines) == (PROCESSES[file.stem], config.num_machines)
    kinds = {"fsdp2": arguments.use_fsdp, "deepspeed": arguments.use_deepspeed}
    assert kinds.get(file.stem, arguments.multi_gpu)
    assert config.distributed_type in set(DistributedType)
    if file.stem == "fsdp2":
        assert arguments.fsdp_transformer_layer_cls_to_wrap in GPTScratchForCausalLM._no_split_modules
        assert str(arguments.fsdp_version) == "2"
    text = file.read_text(encoding="utf-8")
    assert "accelerate launch --config_file scripts/configs/accelerate/" + file.name in text
    assert ("not run here" in text) == (file.stem != "cpu")


def test_every_file_is_known():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == PROCESSES.keys()
