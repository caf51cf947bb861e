"""The format of a checkpoint is recognized by its files and tensors; what is in no known format is refused."""

import pickle

import torch
from converted import save


def test_unknown_files_are_refused(refused, tmp_path):
    path = tmp_path / "model.pth"
    assert "post-norm" in refused(save({"transformer_blocks.0.attention.heads.0.w_query.weight": torch.ones(2)}, path))
    assert "an unknown format; its tensors are fc.weight" in refused(save({"fc.weight": torch.ones(2)}, path))
    assert "contains a list, not a dictionary" in refused(save([torch.ones(2)], path))
    assert "contains no named tensors" in refused(save({"epoch": 3}, path))
    assert "has no matrix model.embed_tokens.weight" in refused(save({"model.embed_tokens.weight": torch.ones(2)}, path))
    path.write_bytes(pickle.dumps({"model": [1.0]}, protocol=4))
    assert "was written by pickle, not by torch.save" in refused(path)
    assert "the name of a tensor is 0, which is not a string" in refused(save({0: torch.ones(2), 1: torch.ones(2)}, path))
    several = {"generator": {"a": torch.ones(2)}, "ema": {"a": torch.ones(2)}, "optimizer": {"a": torch.ones(2)}}
    assert "contains several sets of tensors, generator, ema: save the one to convert" in refused(save(several, path))
    sparse = {"trf_blocks.0.w": torch.eye(2).to_sparse()}
    assert "trf_blocks.0.w is a sparse_coo tensor: save the plain weights" in refused(save(sparse, path))
    quantized = {"trf_blocks.0.w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}
    assert "trf_blocks.0.w is a quantized tensor" in refused(save(quantized, path))
    assert "not a local path" in refused(tmp_path / "nothing.pth")
    assert "give the file with the weights" in refused(tmp_path)
