"""The engine: what a stage is, the DAG, its keys, the store of artifacts, the executor and the session."""
