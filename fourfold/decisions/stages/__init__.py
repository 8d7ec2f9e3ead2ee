"""Which run of layers is which pipeline stage, and how many devices it gets: Alpa's inter-operator question, with a bound for every answer.

A model is L layers in a chain; `instance.StageTable` says what every run of them costs on every submesh. The answer is a chain of stages, each a run
of layers on a submesh. The operators inside of a stage are another question (`shard`), whose answers are in the table.
"""
