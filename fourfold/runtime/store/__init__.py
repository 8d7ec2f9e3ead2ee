"""Checkpoints that cannot be torn: sharded tensors as content-addressed chunks, committed across processes in two phases, on TensorStore.

`layout` names the keys, `backend` opens the key-value store (files, S3, memory), `pieces` says what of a tensor a process holds, `snapshot` copies
it, `encode` makes chunks,
`prepare` is a process's share of a save and its vote, `commit` the coordinator's, `manifest` what was committed, `view` reads,
`collect` removes what no kept step needs, `check` proves every byte, `replica` keeps chunks in a peer's memory, `checkpointer` is all of it together;
`dcp` and `weights` are the front ends of torch.distributed.checkpoint and safetensors.
"""
