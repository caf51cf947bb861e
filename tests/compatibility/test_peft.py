"""peft: LoRA on all linear layers; a saved, loaded or merged adapter gives the same logits."""

import subprocess
import sys

import pytest
import torch
from tiny_models import assert_equal, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

import gpt_scratch  # noqa: F401  registers the model

peft = pytest.importorskip("peft")

IDS = torch.randint(1, 200, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def adapted(checkpoint):
    """The model with an adapter that changes its logits: peft starts B at zero, here it is drawn."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def test_all_linear_is_every_linear_layer_but_the_head(adapted):
    base = adapted.get_base_model()
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear) and "lora" not in name}
    linear = {name.removesuffix(".base_layer") for name in linear}
    targeted = {name for name, module in base.named_modules() if isinstance(module, peft.tuners.lora.Linear)}
    assert targeted == linear - {"lm_head"} and len(targeted) >= 12
    assert all("lora_" in name for name, parameter in adapted.named_parameters() if parameter.requires_grad)


@torch.no_grad()
def test_saved_loaded_and_merged_adapters_are_the_same_function(adapted, checkpoint, tmp_path):
    expected = adapted(IDS).logits
    with adapted.disable_adapter():
        plain = adapted(IDS).logits
    assert (expected - plain).abs().max() > 0.1
    assert_equal(plain, AutoModelForCausalLM.from_pretrained(checkpoint)(IDS).logits)
    adapted.save_pretrained(tmp_path / "adapter")
    assert_equal(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()(IDS).logits, expected)
    assert_equal(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()(IDS).logits, expected)
    merged = adapted.merge_and_unload()
    assert type(merged).__name__ == "GPTScratchForCausalLM"
    assert_equal(merged(IDS).logits, expected)
    merged.save_pretrained(tmp_path / "merged")
    assert_equal(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits, expected)


PLAIN_SCRIPT = """
import sys
sys.modules["gpt_scratch"] = None  # as where the package is not installed
import transformers
for kind, task, method in (("CausalLM", "CAUSAL_LM", "LoraConfig"), ("SequenceClassification", "SEQ_CLS", "IA3Config")):
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(sys.argv[1], trust_remote_code=True)
    import peft  # after the model: nobody has to know of an order
    adapted = peft.get_peft_model(model, getattr(peft, method)(task_type=task))
    print(*sorted({name.rpartition(".")[2] for name in adapted.targeted_module_names}))
"""


@pytest.mark.thorough
def test_lora_needs_no_target_modules(tmp_path):
    """By the code in the checkpoint, this package absent."""
    tiny_model().save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", PLAIN_SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["q_proj v_proj", "down_proj k_proj v_proj"]


def test_methods_of_peft_know_this_architecture():
    for method in ("LoraConfig", "IA3Config", "AdaLoraConfig", "LoHaConfig", "VeraConfig", "LNTuningConfig"):
        settings = {"total_step": 10} if method == "AdaLoraConfig" else {}
        model = peft.get_peft_model(tiny_model("llama"), getattr(peft, method)(**settings))
        assert any(parameter.requires_grad for parameter in model.parameters()), method
        assert torch.isfinite(model(IDS % 61, labels=IDS % 61).loss), method


def test_only_the_adapter_learns(adapted):
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    optimizer = torch.optim.SGD([parameter for parameter in adapted.parameters() if parameter.requires_grad], lr=0.1)
    adapted.train()(IDS, labels=IDS).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "lora_" in name}
